"""Samples of features without images, for metrics that look at features alone."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from medsynth.metrics.score import Sample


@pytest.fixture
def cohort_of() -> Callable[..., Sample]:
    """``cohort_of(features, subjects)``: a sample with these features under the name "features"; each case its own subject by default."""

    def make(features: np.ndarray, subjects: Sequence[str] | None = None) -> Sample:
        names = [str(i) for i in range(len(features))] if subjects is None else list(subjects)
        return Sample(
            images=np.zeros((len(features), 1, 2, 2), np.float32), features={"features": features}, subjects=names, spacing=(1, 1)
        )

    return make
