"""Feature spaces of networks that others trained, from weights that lie on this disk: nothing is fetched, and no other network stands in.

A folder holds the weights (``weights.safetensors``, or a state dict ``weights.pth`` or ``weights.pt``, of which only tensors and plain
containers are read) and ``extractor.json``::

    {"architecture": "medicalnet_resnet10", "sha256": "0f3c...", "input": {"size": [96, 96, 96]}}

``architecture`` is one of `ARCHITECTURES`; ``sha256``, where it is given, is what the file of the weights must have; ``input`` changes
parts of what the architecture expects (`Input`). Every layer must be there under its published name and with its shape. What cannot be
used raises `Unusable`, whose message says why and names no path.

MONAI's residual networks, an own DINOv2 and an own Inception: torchvision, timm and transformers are not needed.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsynth.cohort import sha256_of

DESCRIPTION = "extractor.json"
WEIGHTS = ("weights.safetensors", "weights.pth", "weights.pt")
HEADS = ("fc.", "conv_seg.", "classifier.", "head.", "mask_token")  # what a file may hold besides: no feature passes through it
SMALLEST = {2: 75, 3: 8}  # voxels along an axis, by dimensions: below them the deepest layers have nothing left to look at


class Unusable(Exception):
    """The weights cannot be used; the message says why and becomes the reason of absent scores."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """How an image becomes what a network was trained on.

    Grey values -1..+1 become 0..1, less ``mean``, over ``std``: one number a channel; where both are empty, the image's own. ``size`` is
    that of the network's axes (rows, columns; or slices, rows, columns), reached by linear interpolation, with a filter before it where
    the image shrinks; None: as the image is. ``slices`` is how many of each plane a 2-D network sees of a volume.
    """

    size: tuple[int, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    slices: int = 8


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """``build`` makes a network that maps ``(n, channel, *space)`` to ``(n, width)``; ``renamed`` turns the names that layers have in
    published files into those that they have there."""

    dims: int
    width: int
    input: Input
    build: Callable[[], nn.Module]
    renamed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict

    @property
    def channels(self) -> int:
        return {2: 3, 3: 1}[self.dims]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """An extractor (`medsynth.features`): images ``(case, 1, *space)`` to features ``(case, dimension)``, one case at a time.

    A 2-D network sees a slice as a reader does, turned as in the report's pictures. Of a volume it sees slices of all three planes at even
    distances (2.5-D): the features are the means over the axial, the coronal and the sagittal ones, one behind the other.
    """

    architecture: str
    sha256: str  # of the file of the weights
    input: Input
    network: nn.Module = field(repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for image in images:
                stacks = self._stacks(torch.from_numpy(np.array(image[0], np.float32)))
                rows.append(torch.cat([self.network(stack).double().mean(0) for stack in stacks]).numpy())
        planes = 3 if images.ndim - 2 > self._shape.dims else 1
        return np.stack(rows) if rows else np.zeros((0, planes * self._shape.width))

    @property
    def _shape(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    def _stacks(self, image: Tensor) -> list[Tensor]:
        """What the network is shown of ``(*space)``: ``(n, channel, *size)`` each."""
        if self._shape.dims == 3:
            return [self._prepared(image.permute(2, 1, 0))[None]]  # slices first, as it was trained
        if image.ndim == 2:
            return [self._prepared(_upright(image))[None]]
        stacks = []
        for normal in (2, 1, 0):
            count = image.shape[normal]
            places = np.unique(np.linspace(0, count - 1, self.input.slices + 2)[1:-1].round().astype(int))
            stacks.append(torch.stack([self._prepared(_upright(image.select(normal, int(place)))) for place in places]))
        return stacks

    def _prepared(self, image: Tensor) -> Tensor:
        grey = (image.clip(-1, 1) + 1) / 2
        grey = grey if self.input.size is None else resized(grey, self.input.size)
        channels = grey.expand(self._shape.channels, *grey.shape)
        if not self.input.mean:
            return (channels - grey.mean()) / grey.std().clip(min=1e-6)
        mean, std = (torch.tensor(values).reshape(-1, *[1] * grey.ndim) for values in (self.input.mean, self.input.std))
        return (channels - mean) / std


def _upright(plane: Tensor) -> Tensor:
    """A plane of RAS+ axes as rows and columns from their far ends: the head or the front above, the patient's right on the left."""
    return plane.flip(0, 1).T


def resized(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(*space)`` by linear interpolation along one axis after the other; where an axis shrinks, the triangle is as wide as its step."""
    for axis, count in enumerate(size):
        moved = image.movedim(axis, 0)
        flat = moved.reshape(1, 1, len(moved), -1)
        flat = functional.interpolate(flat, (count, flat.shape[-1]), mode="bilinear", antialias=True)
        image = flat.reshape(count, *moved.shape[1:]).movedim(0, axis)
    return image


# ------------------------------------------------------------------------------------------------------------------------------------
# From a folder


def load(folder: Path, dims: int) -> Pretrained:
    """The extractor of this folder, for images of so many dimensions. Raises Unusable."""
    described = _described(folder)
    name = described["architecture"]
    if name not in ARCHITECTURES:
        raise Unusable(f"{DESCRIPTION}: architecture {name!r} is not known; known are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    if architecture.dims > dims:
        raise Unusable(f"{name} looks at volumes; the cases are slices (data.dims=2)")
    shown = _input(architecture, described.get("input", {}))
    files = [each for each in WEIGHTS if (folder / each).is_file()]
    if len(files) != 1:
        raise Unusable(f"the folder must hold one of {', '.join(WEIGHTS)}; it holds {' and '.join(files) or 'none'}")
    data = (folder / files[0]).read_bytes()  # once: the hash is that of what is loaded
    digest = sha256_of(data)
    if described.get("sha256", digest) != digest:
        raise Unusable(f"{files[0]} has the SHA-256 {digest}, and {DESCRIPTION} asks for {described['sha256']}")
    tensors = architecture.renamed(_tensors(files[0], data))
    return Pretrained(architecture=name, sha256=digest, input=shown, network=_filled(architecture.build(), tensors, name))


def digest_of(folder: Path) -> str:
    """Hash of everything there that `load` would read; of nothing, where nothing is there."""
    found = {name: sha256_of(folder / name) for name in (DESCRIPTION, *WEIGHTS) if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _described(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise Unusable("there is no such folder")
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"the folder holds no {DESCRIPTION}") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"{DESCRIPTION} cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(described, dict) or not isinstance(described.get("architecture"), str):
        raise Unusable(f'{DESCRIPTION} must say {{"architecture": "..."}}')
    if strange := described.keys() - {"architecture", "sha256", "input"}:
        raise Unusable(f"{DESCRIPTION}: there is no setting {min(strange)!r}; there are architecture, sha256 and input")
    return described


def _input(architecture: Architecture, given: Any) -> Input:
    known = Input.__dataclass_fields__
    if not isinstance(given, dict) or given.keys() - known:
        raise Unusable(f"{DESCRIPTION}: input may set {', '.join(known)}, and sets {given}")
    shown = replace(architecture.input, **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    dims, channels = architecture.dims, architecture.channels
    if shown.size is not None and not (
        isinstance(shown.size, tuple) and len(shown.size) == dims and all(type(n) is int and n >= SMALLEST[dims] for n in shown.size)
    ):
        raise Unusable(f"{DESCRIPTION}: input.size must be {dims} whole numbers of at least {SMALLEST[dims]}, not {given['size']}")
    scales = (shown.mean, shown.std)
    if scales != ((), ()) and not all(
        isinstance(values, tuple) and len(values) == channels and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
        for values in scales
    ):
        raise Unusable(f"{DESCRIPTION}: input.mean and input.std must be {channels} numbers each, or both []")
    if not all(value > 0 for value in shown.std):
        raise Unusable(f"{DESCRIPTION}: input.std must be above 0")
    if type(shown.slices) is not int or shown.slices < 1:
        raise Unusable(f"{DESCRIPTION}: input.slices must be a whole number of at least 1, not {shown.slices}")
    return shown


def _tensors(name: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file by name, of all wrappings bare."""
    try:
        if name.endswith(".safetensors"):
            found = safetensors.torch.load(data)
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make the readers raise anything
        kinds = "a state dict of tensors and plain containers" if not name.endswith(".safetensors") else "safetensors"
        raise Unusable(f"{name} cannot be read as {kinds} ({type(error).__name__})") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        raise Unusable(f"{name} holds something else than named tensors")
    return {re.sub(r"^module\.", "", key): value for key, value in found.items()}


def _filled(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    needed = {key: value.shape for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {k: v.float() for k, v in tensors.items() if not k.startswith(HEADS) and not k.endswith("num_batches_tracked")}
    faults = {
        "are missing": [key for key in needed if key not in given],
        "are unknown": [key for key in given if key not in needed],
        "have another shape": [key for key in needed if key in given and given[key].shape != needed[key]],
        "are not finite": [key for key in given if not given[key].isfinite().all()],
    }
    if told := [f"{len(keys)} {what}, such as {keys[0]}" for what, keys in faults.items() if keys]:
        raise Unusable(f"the weights are not those of {name}: of its {len(needed)} tensors {'; '.join(told)}")
    network.load_state_dict(given, strict=False)  # less the counters of batches, which nothing reads
    return network.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------------------------------------
# The networks


def medicalnet(depth: int) -> nn.Module:
    """Chen et al. 2019, "Med3D". As it was trained, the last two stages keep the resolution and look farther instead (dilation); MONAI's
    network, which is the same otherwise, halves it."""
    from monai.networks import nets

    shortcut = "A" if depth in (18, 34) else "B"
    kind = getattr(nets, f"resnet{depth}")
    network = kind(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        feed_forward=False,
        bias_downsample=False,
    )
    for stage, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for block in stage:
            if isinstance(block.downsample, partial):  # shortcut A: no convolution, but a step and zeros
                block.downsample.keywords["stride"] = 1
            for convolution in (part for part in block.modules() if isinstance(part, nn.Conv3d)):
                convolution.stride = (1, 1, 1)
                if convolution.kernel_size == (3, 3, 3):
                    convolution.dilation = convolution.padding = (dilation,) * 3
    return network


def resnet50() -> nn.Module:
    """He et al. 2016, with the stride in the wide convolution as torchvision has it; so RadImageNet was trained (Mei et al. 2022)."""
    from monai.networks import nets

    return nets.resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, feed_forward=False, bias_downsample=False)


def _of_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RadImageNet's file counts the parts: ``backbone.0`` is ``conv1``, ``backbone.4`` is ``layer1``."""
    parts = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return {re.sub(r"^backbone\.([014567])\.", lambda found: f"{parts[found[1]]}.", key): value for key, value in tensors.items()}


class DinoV2(nn.Module):
    """The vision transformer of Oquab et al. 2024, without registers; its feature is the class token. Positions are learned for 37 x 37
    patches of 14 x 14 pixels, and interpolated (bicubic) for other sizes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 37 * 37, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 14, 14)})
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + self._positions(x.shape[2:])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def _positions(self, grid: torch.Size) -> Tensor:
        of_class, of_patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = of_patches.unflatten(1, (37, 37)).permute(0, 3, 1, 2)
        square = square if grid == (37, 37) else functional.interpolate(square, grid, mode="bicubic")
        return torch.cat([of_class, square.flatten(2).transpose(1, 2)], 1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, -1, 64)).permute(2, 0, 3, 1, 4)  # heads of 64
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](seen)
        return x + self.ls2["gamma"] * self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


TRANSFORMERS = {  # how transformers' Dinov2Model calls the parts, in files such as RAD-DINO's
    r"^dinov2\.": "",
    r"^embeddings\.(cls_token|mask_token)$": r"\1",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"^layernorm\.": "norm.",
}


def _of_dinov2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their own files have the names of `DinoV2`; those of transformers keep query, key and value apart."""
    found = {}
    for key, value in tensors.items():
        for pattern, name in TRANSFORMERS.items():
            key = re.sub(pattern, name, key)
        found[key] = value
    for query in [key for key in found if ".attention.attention.query." in key]:
        three = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(each in found for each in three):
            found[query.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat([found.pop(each) for each in three])
    return found


class Inception(nn.Module):
    """Inception v3 (Szegedy et al. 2016) as the Frechet inception distance has it, under the names of its port ``pt_inception-2015-12-05``:
    averages leave out the padding, and the last block takes a maximum."""

    def __init__(self) -> None:
        super().__init__()
        stem = (("1a_3x3", 3, 32, 3, 2, 0), ("2a_3x3", 32, 32, 3, 1, 0), ("2b_3x3", 32, 64, 3, 1, 1))
        stem += (("3b_1x1", 64, 80, 1, 1, 0), ("4a_3x3", 80, 192, 3, 1, 0))
        for name, into, out, kernel, stride, padding in stem:
            self.add_module(f"Conv2d_{name}", _Convolution(into, out, (kernel, kernel), stride, (padding, padding)))
        into = 192
        for name, (pool, branches) in MIXED.items():
            mixed = _Mixed(into, pool, branches)
            self.add_module(f"Mixed_{name}", mixed)
            into = mixed.width

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            x = part(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = functional.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


class _Convolution(nn.Module):
    def __init__(self, into: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


Step = tuple[str, int, tuple[int, int]]  # name, channels, kernel


class _Mixed(nn.Module):
    """Branches side by side. A branch is a row of steps, the last of which may be two that look at the same; one called ``branch_pool``
    begins with the pool. Where the pool halves, it is a branch itself, and so does the last convolution of the others."""

    def __init__(self, into: int, pool: str, branches: tuple[tuple[Step | tuple[Step, Step], ...], ...]) -> None:
        super().__init__()
        self.pool, self.branches, self.width = pool, branches, into if pool == "halve" else 0
        for branch in branches:
            width = into
            for place, step in enumerate(branch):
                last = pool == "halve" and place == len(branch) - 1
                for name, out, kernel in _pair(step):
                    padding = (0, 0) if last else (kernel[0] // 2, kernel[1] // 2)
                    self.add_module(name, _Convolution(width, out, kernel, 2 if last else 1, padding))
                width = sum(out for _, out, _ in _pair(step))
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = POOLS[self.pool](x) if branch[0][0] == "branch_pool" else x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, _, _ in _pair(step)], 1)
            found.append(y)
        return torch.cat([*found, POOLS["halve"](x)] if self.pool == "halve" else found, 1)


POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "average": partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "maximum": partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1),
    "halve": partial(functional.max_pool2d, kernel_size=3, stride=2),
}


def _pair(step: Step | tuple[Step, Step]) -> tuple[Step, ...]:
    return step if isinstance(step[0], tuple) else (step,)


def _row(name: str, *steps: tuple[int, tuple[int, int]]) -> tuple[Step, ...]:
    """``_row("branch5x5", (48, (1, 1)), (64, (5, 5)))``: steps ``branch5x5_1`` and ``branch5x5_2``; one alone has no number."""
    return tuple((f"{name}_{k}" if len(steps) > 1 else name, out, kernel) for k, (out, kernel) in enumerate(steps, 1))


ONE, THREE, FIVE, WIDE, TALL = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _block_a(pooled: int) -> tuple:
    doubled = _row("branch3x3dbl", (64, ONE), (96, THREE), (96, THREE))
    fives = _row("branch5x5", (48, ONE), (64, FIVE))
    return "average", (_row("branch1x1", (64, ONE)), fives, doubled, _row("branch_pool", (pooled, ONE)))


def _block_c(inner: int) -> tuple:
    sevens = _row("branch7x7", (inner, ONE), (inner, WIDE), (192, TALL))
    doubled = _row("branch7x7dbl", (inner, ONE), (inner, TALL), (inner, WIDE), (inner, TALL), (192, WIDE))
    return "average", (_row("branch1x1", (192, ONE)), sevens, doubled, _row("branch_pool", (192, ONE)))


def _block_e(pool: str) -> tuple:
    def split(name: str, number: int) -> tuple[Step, Step]:
        return (f"{name}_{number}a", 384, (1, 3)), (f"{name}_{number}b", 384, (3, 1))

    threes = (("branch3x3_1", 384, ONE), split("branch3x3", 2))
    doubled = (("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), split("branch3x3dbl", 3))
    return pool, (_row("branch1x1", (320, ONE)), threes, doubled, _row("branch_pool", (192, ONE)))


MIXED = {
    "5b": _block_a(32),
    "5c": _block_a(64),
    "5d": _block_a(64),
    "6a": ("halve", (_row("branch3x3", (384, THREE)), _row("branch3x3dbl", (64, ONE), (96, THREE), (96, THREE)))),
    "6b": _block_c(128),
    "6c": _block_c(160),
    "6d": _block_c(160),
    "6e": _block_c(192),
    "7a": (
        "halve",
        (_row("branch3x3", (192, ONE), (320, THREE)), _row("branch7x7x3", (192, ONE), (192, WIDE), (192, TALL), (192, THREE))),
    ),
    "7b": _block_e("average"),
    "7c": _block_e("maximum"),
}

HALF = (0.5, 0.5, 0.5)
IMAGENET = Input(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ARCHITECTURES: Mapping[str, Architecture] = {
    **{
        f"medicalnet_resnet{depth}": Architecture(dims=3, width=width, input=Input(), build=partial(medicalnet, depth))
        for depth, width in ((10, 512), (18, 512), (34, 512), (50, 2048))
    },
    "radimagenet_resnet50": Architecture(
        dims=2, width=2048, input=Input(size=(224, 224), mean=HALF, std=HALF), build=resnet50, renamed=_of_resnet
    ),
    **{
        f"dinov2_vit{size}14": Architecture(dims=2, width=width, input=IMAGENET, build=partial(DinoV2, width, depth), renamed=_of_dinov2)
        for size, width, depth in (("s", 384, 12), ("b", 768, 12), ("l", 1024, 24))
    },
    "inception": Architecture(dims=2, width=2048, input=Input(size=(299, 299), mean=HALF, std=HALF), build=Inception),
}
