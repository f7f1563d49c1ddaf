import pytest
import torch

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.diffusion.process import EDM
from medsynth.training import hardware
from medsynth.training.hardware import precision_for

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("coarsest", "expected"), [((2, 2, 2), "fp32"), ((4, 6, 2), "fp32"), ((3, 3, 3), "bf16"), ((2, 2), "bf16"), ((), "bf16")]
)
def test_tiny_volumes_are_trained_in_fp32_on_a_cpu(monkeypatch, coarsest, expected):
    monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda: True)
    assert precision_for("auto", CPU, coarsest) == expected
    assert precision_for("bf16", CPU, coarsest) == "bf16"


def test_gradients_stay_finite_in_the_precision_that_is_chosen():
    network = UNetSettings(channels=(16, 32, 64), attention_levels=(False, False, True), head_channels=32, norm_groups=8, res_blocks=1)
    size = (8, 8, 8)
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(network.build(dims=3, channels=1, condition_size=0), EDM())
    optimizer = torch.optim.AdamW(denoiser.parameters(), 2e-4)
    chosen = precision_for("auto", CPU, [n // network.reduction for n in size])
    for _ in range(8):
        images, noise = (torch.randn(4, 1, *size, generator=generator) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=chosen == "bf16"):
            denoiser.loss(images, torch.rand(4, generator=generator) + 0.05, noise, None).mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
