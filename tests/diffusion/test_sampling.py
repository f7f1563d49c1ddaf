"""A case's pixels are a function of its seed: not of its batch, its order or who else is drawn."""

from functools import partial

import pytest
import torch

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.networks import UNetSettings
from medsynth.diffusion.noise import CaseNoise
from medsynth.diffusion.process import EDM
from medsynth.diffusion.samplers import ddpm, dpmpp_2m
from medsynth.diffusion.sampling import sample
from medsynth.diffusion.schedule import LogSNR

TINY = UNetSettings(channels=(16, 32), attention_levels=(False, True), res_blocks=1, head_channels=16, norm_groups=8)
SEEDS = (11, 7, 2**62, 0, 5, 3)


@pytest.fixture(scope="module", params=[(1, 13, 18), (2, 6, 7, 9)], ids=["2d", "3d"])
def drawing(request):
    torch.manual_seed(0)
    denoiser = Denoiser(TINY.build(len(request.param) - 1, request.param[0], 3), EDM())
    for parameter in denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    sigmas = LogSNR()(3, 0.002, 80.0)
    return partial(sample, denoiser, sigmas=sigmas, shape=request.param, guidance=Guidance(scale=2.0))


@pytest.mark.parametrize("sampler", [dpmpp_2m, ddpm])
def test_six_images_drawn_together_or_one_at_a_time_are_bit_equal(drawing, sampler):
    condition = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    together = drawing(sampler, seeds=SEEDS, condition=condition)
    for place, seed in enumerate(SEEDS):
        assert torch.equal(drawing(sampler, seeds=[seed], condition=condition[[place]])[0], together[place])
    backwards = drawing(sampler, seeds=SEEDS[::-1], condition=condition.flip(0))
    assert torch.equal(backwards.flip(0), together)


def test_two_seeds_give_two_images_and_one_seed_one(drawing):
    images = drawing(dpmpp_2m, seeds=(1, 2, 1))
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_no_seeds_give_no_images(drawing):
    assert len(drawing(dpmpp_2m, seeds=())) == 0


def test_sampling_leaves_the_model_and_the_world_s_random_numbers_alone(drawing):
    denoiser = drawing.args[0]
    denoiser.train()
    before = torch.get_rng_state()
    drawing(dpmpp_2m, seeds=(1,))
    assert torch.equal(torch.get_rng_state(), before)
    assert denoiser.training
    assert all(parameter.requires_grad for parameter in denoiser.parameters())


def test_noise_is_standard_normal_and_new_at_every_step():
    noise = CaseNoise(range(50), (1, 32, 32))
    drawn = torch.stack([noise.initial(), noise(0), noise(1)])
    assert drawn.dtype == torch.float32
    assert drawn.mean().abs() < 0.01
    assert abs(drawn.std() - 1) < 0.01
    correlation = torch.corrcoef(drawn.flatten(2).flatten(0, 1))
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.2
