"""Every process of conf/process learns, in 2-D and 3-D, through the same loss, towards a known optimum."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import UNetSettings

PROCESSES = sorted((Path(__file__).resolve().parents[2] / "conf/process").glob("*.yaml"))
TINY = UNetSettings(channels=(16, 32), attention_levels=(False, True), res_blocks=1, head_channels=16, norm_groups=8)
SHAPES = {"2d": (4, 1, 8, 8), "3d": (4, 1, 4, 4, 4)}


def four_images(shape: tuple[int, ...]) -> torch.Tensor:
    """Four smooth and different images of standard deviation 0.5 and mean zero."""
    images = torch.nn.functional.interpolate(
        torch.randn(4, 1, *[3] * (len(shape) - 2), generator=torch.Generator().manual_seed(0)),
        size=shape[2:],
        mode="bilinear" if len(shape) == 4 else "trilinear",
    )
    images -= images.flatten(1).mean(1).reshape(-1, *[1] * (len(shape) - 1))
    return images * (0.5 / images.flatten(1).std(1).reshape(-1, *[1] * (len(shape) - 1)))


def best_denoised(images: torch.Tensor, noised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The closed-form best denoiser of a training set: the images' mean, weighted by how likely each is under the noise."""
    distance = (noised[:, None] - images[None]).flatten(2).square().sum(-1)
    likely = (-distance / (2 * sigma[:, None] ** 2)).softmax(-1)
    return torch.einsum("nk,k...->n...", likely, images)


def trained(process, shape: tuple[int, ...], steps: int) -> tuple[float, float]:
    """How much loss a network has above the best possible one, before and after, on fixed noise and levels."""
    generator = torch.Generator().manual_seed(0)
    images = four_images(shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(TINY.build(len(shape) - 2, 1, 0), process)
    seen = images.repeat(8, *[1] * (images.ndim - 1))
    sigma, noise = process.draw_sigma(32, generator), torch.randn(seen.shape, generator=generator)
    noised = seen + sigma.reshape(-1, *[1] * (images.ndim - 1)) * noise
    best = best_denoised(images, noised, sigma)

    @torch.no_grad()
    def excess() -> float:
        return (process.weight(sigma) * (denoiser(noised, sigma) - best).square().flatten(1).mean(1)).mean().item()

    before = excess()
    optimizer = torch.optim.AdamW(denoiser.parameters(), weight_decay=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        denoiser.loss(seen, process.draw_sigma(32, generator), torch.randn(seen.shape, generator=generator)).mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
    return before, excess()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("path", PROCESSES, ids=lambda path: path.stem)
def test_twenty_steps_lower_the_loss(path, shape):
    before, after = trained(instantiate(yaml.safe_load(path.read_text())), shape, 20)
    assert after < 0.9 * before


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("path", PROCESSES, ids=lambda path: path.stem)
def test_on_four_images_the_loss_falls_tenfold_towards_the_best_possible(path, shape):
    """Above the loss of the best denoiser, that is: at high noise even that one cannot tell the four apart."""
    before, after = trained(instantiate(yaml.safe_load(path.read_text())), shape, 400)
    assert after < 0.1 * before
