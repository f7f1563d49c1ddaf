"""Guidance against a denoiser whose conditional and unconditional answers are known."""

import pytest
import torch
from torch import nn

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.process import VariancePreserving

X, SIGMA = torch.zeros(2, 1, 4, 4), torch.tensor([1.0, 2.0])
CONDITION = torch.tensor([[1.0, 2.0], [1.0, 0.0]])


class Told(nn.Module):
    """Predicts an image of ``1 + 10 * first + 100 * second`` of its condition everywhere, and counts the rows it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x, c_noise, condition=None):
        self.calls.append(len(x))
        told = 0 if condition is None else (condition * torch.tensor([10.0, 100.0])).sum(1).reshape(-1, 1, 1, 1)
        return torch.ones_like(x) + told


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Told(), VariancePreserving(prediction="x0"))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_the_image_moves_from_the_unconditional_one_by_the_scale(denoiser, scale):
    guided = Guidance(scale=scale).bind(denoiser, CONDITION)(X, SIGMA)
    torch.testing.assert_close(guided[:, 0, 0, 0], 1 + scale * torch.tensor([210.0, 10.0]))


def test_scale_one_costs_one_evaluation_and_others_one_of_twice_the_batch(denoiser):
    Guidance(scale=1.0).bind(denoiser, CONDITION)(X, SIGMA)
    Guidance(scale=2.0).bind(denoiser, CONDITION)(X, SIGMA)
    Guidance(scale=2.0).bind(denoiser, None)(X, SIGMA)
    assert denoiser.network.calls == [2, 4, 2]
