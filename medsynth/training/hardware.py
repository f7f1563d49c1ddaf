"""Which device, and which precision on it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from medsynth import distributed
from medsynth.errors import SettingsError
from medsynth.training.allocator import keep_freed_memory

Precision = Literal["fp32", "bf16"]


def device_for(accelerator: str) -> torch.device:
    """This process' device for a trainer's accelerator: ``cpu``, ``gpu``, or ``auto`` for a GPU if there is one."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise SettingsError(f"trainer.accelerator={accelerator}, but no CUDA device is visible. Mend the driver, or take trainer=cpu.")
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", distributed.local_rank())
    if accelerator in ("cpu", "auto"):
        return torch.device("cpu")
    raise SettingsError(f"trainer.accelerator={accelerator}: known are cpu, gpu and auto.")


def precision_for(setting: str, device: torch.device, coarsest: Sequence[int] = ()) -> Precision:
    """``auto`` is bf16 where the hardware computes in it (twice as fast, measured on a CPU with AVX512-BF16), else fp32.

    ``coarsest`` is the shape of the network's smallest level, if it is to be trained. On a CPU volumes below 3 voxels there need fp32:
    oneDNN's bf16 weight gradient of a 3-D convolution is wrong where the first axis has 2 voxels (torch 2.13.0), and ends in NaN.
    """
    if setting != "auto":
        return "bf16" if setting == "bf16" else "fp32"
    if device.type == "cpu" and len(coarsest) == 3 and min(coarsest) < 3:
        return "fp32"
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return "bf16" if fast else "fp32"


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: without them oneDNN emulates bf16, at half the speed of fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[None]:
    """On a CPU, one thread for each evaluation inside: two sum matrix products in another order (3e-6 in a pixel, measured)."""
    if device.type != "cpu":
        yield
        return
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
