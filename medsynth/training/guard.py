"""A guard against numbers that are not finite: it names the step and the tensor, and stops training before anything is saved.

Without it a loss of NaN ends in a finished run of NaN weights, with exit code 0.
"""

import torch
from torch import Tensor, nn

from medsynth.errors import TrainingDiverged

REMEDY = (
    "Lower optimizer.lr, raise fit.warmup, lower fit.clip or set fit.precision=fp32. The last good checkpoint is kept, and the same "
    "command resumes from it."
)


class Guard:
    """Collects each step's loss and gradient norms as they are on the device, and reads them back when asked to check."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: list[tuple[int, Tensor, Tensor]] = []

    def watch(self, step: int, loss: Tensor, norms: Tensor) -> None:
        """``norms`` holds one norm a parameter that has a gradient, in the model's order."""
        self._seen.append((step, loss, norms))

    def check(self) -> None:
        """Raise TrainingDiverged for the first step whose loss or gradients are not finite."""
        seen, self._seen = self._seen, []
        if not seen or torch.stack([loss + norms.sum() for _, loss, norms in seen]).isfinite().all():
            return
        for step, loss, norms in seen:
            if not loss.isfinite():
                weight = non_finite({name: parameter for name, parameter in self.model.named_parameters()})
                # with weights that were broken already the loss is only their victim
                what = f"the weight {weight}" if weight and len(seen) == 1 else "the loss"
                raise TrainingDiverged(f"Step {step}: {what} is not finite (loss {loss.item()}). {REMEDY}")
            if not norms.isfinite().all():
                names = [name for name, parameter in self.model.named_parameters() if parameter.grad is not None]
                first = names[int((~norms.isfinite()).nonzero()[0])]
                raise TrainingDiverged(f"Step {step}: the gradient of {first} is not finite. {REMEDY}")


def non_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first floating point tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return None
