"""Features learned from the user's own training cases: a small convolutional network, trained here, with nothing to download.

Without classes it learns to know an image again after it was turned, scaled, shifted and re-lit (contrastive learning, Chen et al. 2020, "A
simple framework for contrastive learning of visual representations"); with classes it learns to tell them apart. It sees what an image
shows, such as a missing class, and by design not how sharp it is: images are looked at coarsely, and other spaces see blur and noise.

A learned space may be bad where training was short or cases are few, so each must prove itself on injected defects before its numbers count
(`medsynth.metrics.sanity`). Training draws from a seed alone; its bytes are the same wherever torch runs with one thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from medsynth.rng import generator_for

COARSE = {2: 64, 3: 32}  # voxels along the longest axis, by dimensions: finer images are halved
TEMPERATURE = 0.2
RATE = 3e-3

View = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How an encoder is trained. ``classes`` names the condition whose values it tells apart; empty: it learns by contrast."""

    seed: int = 0
    steps: int = 300
    batch: int = 64
    widths: tuple[int, ...] = (16, 32, 64, 128)
    classes: str = ""

    def fit(self, images: Iterable[np.ndarray], subjects: Sequence[str], digest: str, classes: Sequence[int] | None = None) -> "Encoder":
        """An encoder of these images, ``(1, *space)`` each; ``digest`` says which they are. ``classes`` are numbers from 0, or -1 for a
        case without one."""
        assert (classes is not None) == bool(self.classes)
        images = np.stack([_coarse(torch.from_numpy(np.array(image, np.float32))[None])[0].numpy() for image in images])
        network = self.network(images.ndim - 2)
        if classes is None:
            contrast(network, images, subjects, view=moved, steps=self.steps, batch=self.batch, seed=self.seed)
        else:
            tell_apart(network, images, subjects, np.asarray(classes), view=moved, steps=self.steps, batch=self.batch, seed=self.seed)
        return Encoder(learner=self, trained_on=digest, network=network.eval().requires_grad_(False))

    def loaded(self, weights: Mapping[str, torch.Tensor], dims: int, digest: str) -> "Encoder":
        """The encoder that was fitted before, from its ``network.state_dict()``."""
        network = self.network(dims)
        network.load_state_dict(weights)
        return Encoder(learner=self, trained_on=digest, network=network.eval().requires_grad_(False))

    def network(self, dims: int) -> nn.Sequential:
        """Convolutions, each of half the size of the one before, and the mean of every channel of the last: ``(n, 1, *space)`` to
        ``(n, width)``. Its weights are drawn from the seed."""
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        layers: list[nn.Module] = []
        for into, out in zip((1, *self.widths[:-1]), self.widths, strict=True):
            layers += [convolution(into, out, 3, stride=2, padding=1, bias=False), norm(out), nn.ReLU()]
        network = nn.Sequential(*layers, _Mean())
        _drawn(network, self.seed, "encoder")
        return network


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An extractor (`medsynth.features`): images ``(case, 1, *space)`` to features ``(case, widths[-1])``, one case at a time."""

    learner: Learner
    trained_on: str  # digest of the training cohort
    network: nn.Module = field(repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for image in images:
                x = _coarse(torch.from_numpy(np.array(image, np.float32))[None])
                rows.append(self.network(x)[0].double().numpy())
        return np.stack(rows) if rows else np.zeros((0, self.learner.widths[-1]))


def contrast(network: nn.Module, images: np.ndarray, subjects: Sequence[str], *, view: View, steps: int, batch: int, seed: int) -> None:
    """Train ``network`` so that two views of a case lie nearer to each other than to any other subject's (NT-Xent: Chen et al. 2020,
    equation 1). A batch holds one case a subject: the next slice of the same person is no opposite."""
    head = _head(network, images, seed)

    def loss(cases: torch.Tensor, rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        both = torch.cat([view(cases, generator), view(cases, generator)])
        z = nn.functional.normalize(head(network(both)), dim=1)
        likeness = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return nn.functional.cross_entropy(likeness, torch.arange(len(z)).roll(len(cases)))

    _train([network, head], images, subjects, loss, steps=steps, batch=batch, seed=seed)


def tell_apart(
    network: nn.Module,
    images: np.ndarray,
    subjects: Sequence[str],
    classes: np.ndarray,
    *,
    view: View,
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train ``network`` so that a linear layer on it tells the classes; cases of class -1 take no part. Rare classes weigh as much as
    others."""
    known = np.flatnonzero(classes >= 0)
    images, subjects, classes = images[known], [subjects[i] for i in known], classes[known]
    counts = np.bincount(classes)
    weight = torch.from_numpy(len(classes) / (len(counts) * np.maximum(counts, 1))).float()
    head = nn.Linear(_width(network, images), len(counts))
    _drawn(head, seed, "classes")
    target = torch.from_numpy(classes)

    def loss(cases: torch.Tensor, rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        return nn.functional.cross_entropy(head(network(view(cases, generator))), target[rows], weight)

    _train([network, head], images, subjects, loss, steps=steps, batch=batch, seed=seed)


def moved(cases: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Each image turned by up to 6 degrees, scaled by up to a twentieth along each axis, shifted by up to a twentieth of its width, and its
    brightness and contrast changed by up to a twentieth: less than persons differ. Stronger views teach a network to forget what patients
    differ in. Never mirrored: the side on which an organ lies matters."""
    count, dims = len(cases), cases.ndim - 2
    turns = np.triu(generator.uniform(-0.1, 0.1, (count, dims, dims)), 1)
    scales = generator.uniform(-0.05, 0.05, (count, dims))
    # the exponential of turns and scales together is a small affine map, in any number of dimensions
    matrix = torch.matrix_exp(torch.from_numpy(turns - turns.transpose(0, 2, 1) + scales[:, None] * np.eye(dims)))
    shift = torch.from_numpy(generator.uniform(-0.1, 0.1, (count, dims, 1)))  # a grid is 2 wide
    grid = nn.functional.affine_grid(torch.cat([matrix, shift], 2).float(), list(cases.shape), align_corners=False)
    seen = nn.functional.grid_sample(cases, grid, padding_mode="border", align_corners=False)
    light = torch.from_numpy(generator.uniform(-0.05, 0.05, (2, count, *[1] * (dims + 1)))).float()
    return (seen + 1) * (1 + light[0]) - 1 + light[1]


def _train(
    modules: Sequence[nn.Module],
    images: np.ndarray,
    subjects: Sequence[str],
    loss: Callable[[torch.Tensor, np.ndarray, np.random.Generator], torch.Tensor],
    *,
    steps: int,
    batch: int,
    seed: int,
) -> None:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=max(steps, 2))
    of_subject: dict[str, list[int]] = {}
    for row, subject in enumerate(subjects):
        of_subject.setdefault(subject, []).append(row)
    people = list(of_subject.values())
    assert min(batch, len(people)) > 1, "two subjects are needed to tell one from the other"
    for step in range(steps):
        generator = generator_for(seed, "encoder", "step", step)
        chosen = generator.choice(len(people), min(batch, len(people)), replace=False)
        rows = np.array([people[i][generator.integers(len(people[i]))] for i in chosen])
        optimiser.zero_grad()
        loss(torch.from_numpy(images[rows]), rows, generator).backward()
        optimiser.step()
        pace.step()


def _head(network: nn.Module, images: np.ndarray, seed: int) -> nn.Sequential:
    """The projection in which the contrast is taken; it is thrown away afterwards."""
    width = _width(network, images)
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width // 2))
    _drawn(head, seed, "projection")
    return head


def _width(network: nn.Module, images: np.ndarray) -> int:
    training = network.training
    with torch.no_grad():
        width = network.eval()(torch.from_numpy(images[:1])).shape[1]
    network.train(training)
    return width


def _drawn(module: nn.Module, seed: int, *what: str) -> None:
    """Weights from the seed (He et al. 2015, equation 10), biases zero; a normalisation keeps its ones."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            values = generator_for(seed, *what, name).standard_normal(parameter.shape) * np.sqrt(2 / fan)
            parameter.data = torch.from_numpy(values.astype(np.float32))
        elif name.endswith("bias"):
            parameter.data.zero_()


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


def _coarse(image: torch.Tensor) -> torch.Tensor:
    """``(1, 1, *space)``, its long axes halved as often as it takes."""
    dims = image.ndim - 2
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[dims]
    while max(image.shape[2:]) > COARSE[dims]:
        image = pool(image, tuple(2 if size > COARSE[dims] / 2 else 1 for size in image.shape[2:]))
    return image
