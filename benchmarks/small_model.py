"""Phantom slices in any number, and a small diffusion model trained on them in minutes: what the benchmarks of the audit attack."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from tqdm import trange

from medsynth import config
from medsynth.data.loader import Layout
from medsynth.data.sources.phantom_anatomy import image_of, truth
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.features import RandomConvolution
from medsynth.metrics.intervals import score
from medsynth.metrics.kernel import KernelDistance
from medsynth.metrics.score import Sample, Score
from medsynth.rng import seed_for
from medsynth.training.ema import EMA
from medsynth.training.module import DiffusionModule

WINDOW = 160.0  # HU that map to +1; its negative to -1
NETWORK = UNetSettings(channels=(16, 32), attention_levels=(False, True), res_blocks=1, head_channels=16, norm_groups=8)


def slices(subjects: Sequence[int], size: int) -> np.ndarray:
    """One CT slice a phantom patient, float32 ``(subject, size, size)`` in model units."""
    picture = partial(image_of, modality="CT", size=size, slices=1, thickness=8.0)
    images = [picture(truth(0, subject), seed=seed_for(0, "picture", subject))[:, :, 0] for subject in subjects]
    return np.clip(np.stack(images) / WINDOW, -1, 1).astype(np.float32)


def trained(
    images: np.ndarray, *, steps: int, batch: int, flips: Sequence[int] = (), seed: int = 0, overrides: Sequence[str] = ()
) -> Denoiser:
    """A denoiser with averaged weights, trained by the product's own step on images ``(n, *space)``; ``overrides`` are of its settings."""
    cfg = config.compose(overrides)
    objects = config.build(cfg, ("process", "optimizer"))
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "weights"))
        denoiser = Denoiser(NETWORK.build(dims=images.ndim - 1, channels=1, condition_size=0), objects["process"])
    module = DiffusionModule(
        denoiser, objects["optimizer"], layout=Layout(global_batch=batch), seed=seed, warmup=50, clip=1.0, dropout=0.0, flips=flips
    )
    made = module.configure_optimizers()
    optimizer, warmup = made["optimizer"], made["lr_scheduler"]["scheduler"]
    ema = EMA(max(1, steps // 10))
    ema.start(denoiser)
    generator = np.random.default_rng(seed)
    for step in trange(steps, desc="training", leave=False):
        rows = generator.integers(len(images), size=batch)
        optimizer.zero_grad(set_to_none=True)
        x = torch.from_numpy(images[rows][:, None])
        module.training_step({"x": x, "condition": None, "rows": range(batch), "step": step, "last": True}, 0).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        warmup.step()
        ema.update(denoiser, step + 1)
        module.on_train_batch_end(None, {"last": True}, 0)
    with ema.swapped(denoiser):
        state = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    denoiser.load_state_dict(state)
    return denoiser.eval()


@torch.inference_mode()
def drawn(denoiser: Denoiser, count: int, shape: tuple[int, ...], *, steps: int = 20, seed: int = 0, batch: int = 64) -> np.ndarray:
    """``count`` images ``(count, *shape)``. Many at a time, so that their last bits depend on ``batch``."""
    objects = config.build(config.compose([]), ("schedule", "sampler"))
    process = denoiser.process
    sigmas = objects["schedule"](steps, process.sigma_min, process.sigma_max)
    images = []
    for start in trange(0, count, batch, desc="drawing", leave=False):
        generator = torch.Generator().manual_seed(seed_for(seed, "draw", start))
        noise = torch.randn(min(batch, count - start), 1, *shape, generator=generator) * sigmas[0]
        images.append(objects["sampler"](denoiser, noise, sigmas)[:, 0].clamp(-1, 1).numpy())
    return np.concatenate(images)


def kid(unseen: np.ndarray, synthetic: np.ndarray) -> Score:
    """KID on random-convolution features between one half of real images that no model saw and synthetic ones; all ``(n, *space)``.

    The other half sets the scale of the features, and the floor: real against real.
    """
    fixed, real, made = (_sample(name, images) for name, images in (("a", unseen[::2]), ("b", unseen[1::2]), ("c", synthetic)))
    return score("kid", KernelDistance(features="random"), fixed, real, made, seed=0, subsamples=100, permutations=0)


def _sample(name: str, images: np.ndarray) -> Sample:
    images = images[:, None].astype(np.float32)
    people = [f"{name}{number}" for number in range(len(images))]
    return Sample(images=images, features={"random": RandomConvolution()(images)}, subjects=people, spacing=(1.0,) * (images.ndim - 2))
