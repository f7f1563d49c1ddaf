"""Networks: MONAI's diffusion U-Net behind one adapter, in 2-D and 3-D.

Settings that a user chooses stand in a frozen dataclass; what follows from the data (dimensions, channels, length of a condition) is given
to its ``build``. The adapter owns what the rest of the package need not know: the scale of the noise label, sizes that down-sampling does
not divide, the way of a condition into the network, and which attention kernel is fast where.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import SettingsError

if TYPE_CHECKING:
    from monai.networks.blocks.selfattention import SABlock

# MONAI's sinusoidal embedding is made for labels of 0 to 1000; a process' c_noise spans about one unit.
LABEL_SCALE = 1000.0


class NetworkSettings(Protocol):
    """What a network is made from: a frozen dataclass of plain values, so that a checkpoint can say it in words."""

    reduction: int

    def build(self, dims: int, channels: int, condition_size: int) -> nn.Module:
        """A network ``(x, c_noise, condition) -> x``, that keeps ``settings, dims, channels, condition_size`` as attributes."""
        ...


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """Settings of `UNet`, one entry of the sequences a level, from full resolution down; every level halves the size."""

    channels: Sequence[int] = (32, 64, 128)  # multiples of norm_groups
    attention_levels: Sequence[bool] = (False, False, True)
    res_blocks: int = 2  # a level
    head_channels: int = 32  # of each attention head
    norm_groups: int = 32

    def __post_init__(self) -> None:
        # tuples, also where the settings come from YAML: two equal settings then compare equal
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        levels = len(self.channels)
        if len(self.attention_levels) != levels:
            raise SettingsError(
                f"network.channels has {levels} levels, network.attention_levels {len(self.attention_levels)}. Give both one entry a level."
            )
        for level, (width, attention) in enumerate(zip(self.channels, self.attention_levels, strict=True)):
            # MONAI's middle block always attends
            of_heads = self.head_channels if attention or level == levels - 1 else 1
            for divisor, name in ((self.norm_groups, "norm_groups"), (of_heads, "head_channels")):
                if width % divisor:
                    raise SettingsError(f"network.channels={list(self.channels)}: {width} is no multiple of network.{name}={divisor}.")

    @property
    def reduction(self) -> int:
        """By how much the coarsest level is smaller than the image, along every axis."""
        return 2 ** (len(self.channels) - 1)

    def build(self, dims: int, channels: int, condition_size: int) -> "UNet":
        return UNet(self, dims, channels, condition_size)


class UNet(nn.Module):
    """MONAI's `DiffusionModelUNet` as ``(x, c_noise, condition) -> x``.

    A condition goes through a small MLP and is added to the embedding of the noise level, where MONAI adds a class; None is the null
    condition, as is the zero vector. Weights keep MONAI's names. The last convolution starts at zero, so an untrained
    denoiser gives ``c_skip * x``.
    """

    def __init__(self, settings: UNetSettings, dims: int, channels: int, condition_size: int) -> None:
        super().__init__()
        # here and not above: it takes seconds, and settings are checked by every verb
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns about its own optional imports
            from monai.networks.blocks.selfattention import SABlock
            from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        self.settings = settings
        self.dims = dims
        self.channels = channels
        self.condition_size = condition_size
        self.net = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=channels,
            out_channels=channels,
            channels=settings.channels,
            attention_levels=settings.attention_levels,
            num_res_blocks=settings.res_blocks,
            num_head_channels=settings.head_channels,
            norm_num_groups=settings.norm_groups,
            num_class_embeds=1 if condition_size else None,
        )
        if condition_size:
            width = 4 * settings.channels[0]  # of MONAI's noise level embedding
            self.net.class_embedding = nn.Sequential(nn.Linear(condition_size, width), nn.SiLU(), nn.Linear(width, width))
        for module in list(self.net.modules()):
            for name, child in module.named_children():
                if isinstance(child, SABlock):
                    setattr(module, name, Attention(child))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """``x`` is ``(n, channels, *space)`` of any size, ``c_noise`` ``(n,)``, ``condition`` ``(n, condition_size)`` or None."""
        if condition is None and self.condition_size:
            condition = x.new_zeros(len(x), self.condition_size)
        padded = F.pad(x, self._padding(x.shape[2:]))
        output = self.net(padded, LABEL_SCALE * c_noise, class_labels=condition if self.condition_size else None)
        return output[(..., *(slice(size) for size in x.shape[2:]))]

    def _padding(self, space: Sequence[int]) -> list[int]:
        """Zeros behind each axis, last axis first, up to the next size that every level halves evenly."""
        factor = self.settings.reduction
        return [pad for size in reversed(space) for pad in (0, -size % factor)]


class Attention(nn.Module):
    """MONAI's self-attention with the kernel chosen by device and precision; same weights, same names, same result to rounding.

    Fused attention never holds the token by token matrix. On a CPU in bf16 it is slower than two matrix products (measured 0.4 to 0.65x),
    in fp32 and on GPUs it is faster.
    """

    def __init__(self, block: "SABlock") -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out_proj = block.to_q, block.to_k, block.to_v, block.out_proj
        self.heads = block.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """``(n, tokens, width)`` to the same."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        if x.device.type == "cpu" and q.dtype == torch.bfloat16:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
