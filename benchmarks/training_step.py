"""A training step: ours against MONAI's tutorial loop, on one network with the same weights.

Ours is what `medsynth train` does between two batches: the module's draws and loss, gradient clipping with its guard, the optimiser of
conf/optimizer, and the average of the weights; Lightning's own loop is left out. The peer is the loop of MONAI's DDPM tutorials:
``DiffusionModelUNet`` eager in fp32, ``DiffusionInferer`` with a ``DDPMScheduler``, AdamW, and no average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch.nn import functional as F

from benchmarks.table import Table
from benchmarks.timing import Variant, against, alternated
from medsynth import config
from medsynth.data.loader import Layout
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import LABEL_SCALE, UNet, UNetSettings
from medsynth.training.ema import EMA
from medsynth.training.hardware import precision_for
from medsynth.training.module import DiffusionModule

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network and the batch ``(batch, 1, *space)`` that it is trained on."""

    network: UNetSettings
    batch: int
    space: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, 1, *self.space)


FLAT = Size(
    network=UNetSettings(channels=(32, 64, 128), attention_levels=(False, True, True), head_channels=32, norm_groups=32),
    batch=8,
    space=(64, 64),
)
SOLID = Size(
    network=UNetSettings(channels=(16, 32, 64), attention_levels=(False, False, True), head_channels=32, norm_groups=8),
    batch=2,
    space=(32, 32, 32),
)
_TINY = UNetSettings(channels=(8, 16), attention_levels=(False, True), res_blocks=1, head_channels=8, norm_groups=8)


def measure(tiny: bool) -> list[Table]:
    flat, solid = (Size(network=_TINY, batch=2, space=(8,) * dims) if tiny else size for dims, size in ((2, FLAT), (3, SOLID)))
    return [_compared(flat, 2 if tiny else 7), _compared(solid, 2 if tiny else 9)]


def _compared(size: Size, rounds: int) -> Table:
    require_one_network(size)
    peer = "MONAI tutorial, fp32"
    chosen = precision_for("auto", CPU)
    variants = [
        Variant(name=peer, make=partial(theirs, size, CPU)),
        Variant(name="MONAI tutorial, fp32, our allocator", make=partial(theirs, size, CPU), tuned=True),
        Variant(name="MONAI tutorial, bf16, our allocator", make=partial(theirs, size, CPU, torch.bfloat16), tuned=True),
        Variant(name="medsynth, fp32", make=partial(ours, size, CPU, bf16=False), tuned=True),
        Variant(name="medsynth, bf16", make=partial(ours, size, CPU, bf16=True), tuned=True),
    ]
    weights = sum(parameter.numel() for parameter in unet(size).parameters())
    what = f"{size.batch} images of {'x'.join(map(str, size.space))}, {weights:,} weights on both sides"
    return Table(
        title=f"Training step in {len(size.space)}-D",
        note=f"{what}. Median of {rounds} rounds. The peer is the first row: as a user runs it, with glibc's own allocator settings. "
        f"medsynth on this CPU takes {chosen} by itself (fit.precision=auto). Ours includes clipping, guard and the average of the "
        "weights, which the tutorial does not have.",
        rows=against(alternated(variants, rounds), peer),
    )


def ours(size: Size, device: torch.device, *, bf16: bool) -> Callable[[], float]:
    """A function that does one training step of the product and returns its loss."""
    cfg = config.compose([])
    fit, objects = config.values(cfg).fit, config.build(cfg, ("process", "optimizer"))
    module = DiffusionModule(
        Denoiser(unet(size), objects["process"]).to(device),
        objects["optimizer"],
        layout=Layout(global_batch=size.batch),
        seed=0,
        warmup=fit.warmup,
        clip=fit.clip,
        dropout=fit.condition_dropout,
        flips=fit.flips,
    )
    module.to(device)
    made = module.configure_optimizers()
    optimizer, warmup = made["optimizer"], made["lr_scheduler"]["scheduler"]
    ema = EMA(fit.ema_halflife)
    ema.start(module.denoiser)
    batch = {"x": images(size).to(device), "condition": None, "rows": range(size.batch), "last": True}
    done = 0

    def step() -> float:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module.training_step(batch | {"step": done}, 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        warmup.step()
        done += 1
        ema.update(module.denoiser, done)
        module.on_train_batch_end(None, batch, 0)
        return loss.detach()

    return step


def theirs(size: Size, device: torch.device, dtype: torch.dtype | None = None) -> Callable[[], float]:
    """A function that does one step of the tutorial's loop; ``dtype`` is that of its autocast, float16 with its loss scaler."""
    model = monai_unet(size).to(device)
    inferer = DiffusionInferer(DDPMScheduler(num_train_timesteps=1000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    x = images(size).to(device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            noise = torch.randn_like(x)
            timesteps = torch.randint(0, inferer.scheduler.num_train_timesteps, (size.batch,), device=device)
            predicted = inferer(inputs=x, diffusion_model=model, noise=noise, timesteps=timesteps)
            loss = F.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def unet(size: Size) -> UNet:
    """Our network, one channel, no condition; no weight is zero, so that no work is trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = size.network.build(dims=len(size.space), channels=1, condition_size=0)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return network


def monai_unet(size: Size) -> DiffusionModelUNet:
    """MONAI's network of the same settings with the same weights, as it comes."""
    settings = size.network
    model = DiffusionModelUNet(
        spatial_dims=len(size.space),
        in_channels=1,
        out_channels=1,
        channels=settings.channels,
        attention_levels=settings.attention_levels,
        num_res_blocks=settings.res_blocks,
        num_head_channels=settings.head_channels,
        norm_num_groups=settings.norm_groups,
    )
    model.load_state_dict(unet(size).net.state_dict())
    return model


def images(size: Size) -> torch.Tensor:
    return torch.randn(size.shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@torch.inference_mode()
def require_one_network(size: Size) -> None:
    """Both sides train one function: the same output from the same weights, to rounding."""
    x, label = images(size), torch.full((size.batch,), 0.5)
    mine, other = unet(size).eval()(x, label), monai_unet(size).eval()(x, LABEL_SCALE * label)
    difference = ((mine - other).norm() / other.norm()).item()
    assert difference < 1e-5, f"the networks differ by {difference:.1g}"
