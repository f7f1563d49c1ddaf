"""How far a sampler is from the distribution that its denoiser knows, by number of evaluations. Exact: nothing is trained or timed.

For Gaussian data the best denoiser is linear, so a deterministic sampler is a gain for each frequency: what a unit of noise becomes is the
standard deviation that is drawn. The data have an image's 1/f^2 spectrum. The figure is the relative Wasserstein-2 distance between the
distribution that is drawn and the data's, in percent.
"""

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from torch import Tensor

from benchmarks.table import Row, Table
from medsynth.diffusion.process import EDM, RectifiedFlow
from medsynth.diffusion.samplers import dpmpp_2m
from medsynth.diffusion.schedule import LogSNR

FREQUENCIES = 512
TRAINED = 1000  # MONAI's training steps, its linear beta
DRAWS = 4096  # for the stochastic peer: an error of 1.1 % from chance alone


def measure(tiny: bool) -> list[Table]:
    numbers = (8,) if tiny else (8, 10, 20, 30)
    draws = 256 if tiny else DRAWS
    edm, flow = EDM(), RectifiedFlow()
    samplers = {
        f"medsynth dpmpp_2m, levels {edm.sigma_max:g} to {edm.sigma_min:g} (EDM)": lambda n: dpmpp(n, edm),
        f"medsynth dpmpp_2m, levels {flow.sigma_max:g} to {flow.sigma_min:g} (flow, VP)": lambda n: dpmpp(n, flow),
        "MONAI PNDMScheduler (skip_prk_steps)": lambda n: stepped(PNDMScheduler(num_train_timesteps=TRAINED, skip_prk_steps=True), n),
        "MONAI DDIMScheduler": lambda n: stepped(DDIMScheduler(num_train_timesteps=TRAINED, clip_sample=False), n),
        "MONAI RFlowScheduler": rectified,
        "MONAI DDPMScheduler": lambda n: ancestral(n, draws),
    }
    rows: list[Row] = [
        {"sampler": name} | {f"% at {n} evaluations": 100 * error(sampler(n)) for n in numbers} for name, sampler in samplers.items()
    ]
    note = (
        "Relative Wasserstein-2 error, Gaussian data with a 1/f^2 spectrum, exact denoiser: the sampler's own error, none of a network's. "
        "No clipping of samples anywhere. MONAI's DDPMScheduler takes its steps as if all 1000 were made, whatever set_timesteps says, "
        "hence its error; it is meant for 1000."
    )
    return [Table(title="Sampling error by evaluations", note=note, rows=rows)]


def variance() -> Tensor:
    """Of each frequency, float64, mean 0.25."""
    spectrum = torch.arange(1, FREQUENCIES + 1, dtype=torch.float64) ** -2
    return spectrum * 0.25 / spectrum.mean()


def error(drawn: Tensor) -> float:
    return ((drawn.double() - variance().sqrt()).norm() / variance().sum().sqrt()).item()


def dpmpp(evaluations: int, process: EDM | RectifiedFlow) -> Tensor:
    """Standard deviations drawn by the product's default sampler and schedule over a process' range of levels."""
    levels, data = LogSNR()(evaluations, process.sigma_min, process.sigma_max), variance()
    counted = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        counted.append(1)
        return data / (data + sigma[:, None] ** 2) * x

    drawn = dpmpp_2m(denoise, levels[0] * torch.ones(1, FREQUENCIES, dtype=torch.float64), levels)
    assert len(counted) == evaluations
    return drawn[0].abs()


def stepped(scheduler: DDIMScheduler | PNDMScheduler, evaluations: int) -> Tensor:
    """Standard deviations drawn by a deterministic scheduler of MONAI's."""
    scheduler.set_timesteps(evaluations)
    x = torch.ones(1, FREQUENCIES)
    assert len(scheduler.timesteps) == evaluations
    for timestep in scheduler.timesteps:
        x, _ = scheduler.step(noise_in(x, scheduler.alphas_cumprod[int(timestep)]), timestep, x)
    return x[0].abs()


def rectified(evaluations: int) -> Tensor:
    """Standard deviations drawn by MONAI's rectified flow: Euler steps of the exact velocity, noise less image."""
    scheduler = RFlowScheduler(num_train_timesteps=TRAINED, use_discrete_timesteps=False)
    scheduler.set_timesteps(evaluations)
    x, data = torch.ones(1, FREQUENCIES), variance().float()
    following = torch.cat([scheduler.timesteps[1:], torch.zeros(1)])
    for timestep, after in zip(scheduler.timesteps, following, strict=True):
        t = float(timestep) / TRAINED
        velocity = ((1 - t) * data - t) / ((1 - t) ** 2 * data + t**2) * x  # MONAI's sign: image less noise
        x, _ = scheduler.step(velocity, timestep, x, after)
    return x[0].abs()


def ancestral(evaluations: int, draws: int) -> Tensor:
    """Standard deviations of what MONAI's stochastic scheduler draws."""
    scheduler = DDPMScheduler(num_train_timesteps=TRAINED, clip_sample=False)
    scheduler.set_timesteps(evaluations)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, FREQUENCIES, generator=generator)
    for timestep in scheduler.timesteps:
        x, _ = scheduler.step(noise_in(x, scheduler.alphas_cumprod[int(timestep)]), timestep, x, generator=generator)
    return x.std(0)


def noise_in(x: Tensor, kept: Tensor) -> Tensor:
    """Expected noise given ``x = sqrt(kept) * image + sqrt(1 - kept) * noise``."""
    return (1 - kept).sqrt() * x / (kept * variance().float() + 1 - kept)
