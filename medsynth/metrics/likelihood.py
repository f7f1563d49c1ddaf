"""Do synthetic cases cost the model as many bits as real ones, and training cases fewer than held-out ones?

Costs are a model's own, in bits per dimension above a noise floor (`medsynth.diffusion.likelihood`). Whoever has the model computes them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.score import Best, Comparison, NotApplicable, Rows, Sample


@dataclass(frozen=True, kw_only=True)
class LikelihoodGap:
    """Mean cost of synthetic less that of held-out cases: below zero, samples are smoother than the data; details hold the means.

    The anchor is the mean cost of training less that of held-out cases, and its interval should hold zero. Below it, the model knows its
    training cases better than others: over-fitting, and a sign of memorization.
    """

    column: int  # of the costs
    floor: float  # model units

    features: ClassVar[str] = "likelihood"
    best: ClassVar[Best] = "anchor"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        if any(self.features not in sample.features for sample in (train, *samples)):
            raise NotApplicable("the model's costs of these cases were not computed")
        fixed = float(train.features[self.features][:, self.column].mean())
        cost = np.concatenate([sample.features[self.features][:, self.column] for sample in samples])

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            means = {"train": fixed, "real": float(cost[real].mean()), "synthetic": float(cost[synthetic].mean())}
            return {"bits_per_dimension": means, "noise_floor": self.floor}

        return Comparison(lambda real, synthetic: float(cost[synthetic].mean() - cost[real].mean()), details)
