"""Frozen feature extractors, shared by the audit and the metrics: numbers that describe an image, with nothing to download.

An extractor is a frozen dataclass that maps images ``(case, 1, *space)`` in model units to float64 features ``(case, dimension)``. Every
case is taken by itself, so its features depend neither on the cases beside it nor on their order. 2-D and 3-D are the same code.

No single space sees every defect: random convolutions and texture see blur, noise and gain, and are blind to a class that is missing.
"""

import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from tqdm import tqdm

from medsynth import radiomics
from medsynth.cohort import Cohort, sha256_of
from medsynth.rng import generator_for

CHUNK = 8  # cases in memory at a time
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # by spatial axes: a convolution of volumes is twice as fast
SMALLEST = 8  # voxels: an axis shorter than twice this is not halved any further


class Extractor(Protocol):
    """Images ``(case, 1, *space)``, float32 in -1..+1, to features ``(case, dimension)``, float64."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class RandomConvolution:
    """A convolutional pyramid with random weights, never trained; the mean and the standard deviation of every channel are the features.

    Random filters with pooling measure texture and intensity about as well as trained ones (Saxe et al. 2011, "On random weights and
    unsupervised feature learning"). ``widths`` are the channels of the layers (3-wide kernels, ReLU), ``octaves`` the number of sizes,
    each half of the one before, at which the same layers look at the image. Draw several seeds and take the median: one draw's filters
    may miss a defect.
    """

    seed: int = 0
    widths: tuple[int, ...] = (24, 48)
    octaves: int = 3

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = _checked(images)
        layers = self._layers(images.ndim - 2)
        with torch.inference_mode():
            # One case at a time: a convolution rounds differently at different batch sizes.
            rows = [self._features(torch.from_numpy(image)[None], layers) for image in images]
        return np.stack(rows) if rows else np.zeros((0, 2 * sum(self.widths) * self.octaves))

    def _features(self, image: torch.Tensor, layers: list[nn.Module]) -> np.ndarray:
        inner = tuple(range(3, image.ndim))  # summed in single precision, what is left in double
        pooled = []
        for _ in range(self.octaves):
            x = image.contiguous(memory_format=CHANNELS_LAST[image.ndim - 2])
            voxels = image[0, 0].numel()
            for layer in layers:
                x = torch.relu(layer(x))
                mean = x.sum(inner)[0].sum(1, dtype=torch.float64) / voxels
                away = x - mean.float().reshape(1, -1, *[1] * (image.ndim - 2))
                pooled += [mean, (away.square_().sum(inner)[0].sum(1, dtype=torch.float64) / voxels).sqrt()]
            image = _halved(image)
        return torch.cat(pooled).numpy()

    def _layers(self, dims: int) -> list[nn.Module]:
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        layers = []
        for depth, (into, out) in enumerate(zip((1, *self.widths[:-1]), self.widths, strict=True)):
            layer = convolution(into, out, 3, padding=1, padding_mode="replicate")
            generator = generator_for(self.seed, "random convolution", dims, depth)
            # He et al. 2015, eq. 10: the variance of the responses is kept through the ReLU
            weight = generator.standard_normal(layer.weight.shape) * np.sqrt(2 / (into * 3**dims))
            bias = generator.standard_normal(out) * 0.1
            layer.weight.data = torch.from_numpy(weight.astype(np.float32))
            layer.bias.data = torch.from_numpy(bias.astype(np.float32))
            layers.append(layer.eval().to(memory_format=CHANNELS_LAST[dims]))
        return layers


def _halved(image: torch.Tensor) -> torch.Tensor:
    kernel = tuple(2 if size >= 2 * SMALLEST else 1 for size in image.shape[2:])
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[len(kernel)]
    return pool(image, kernel)


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Radiomics of the whole image under their standard names (`medsynth.radiomics`), energies of the gradient, of the
    Laplacian of Gaussians and of the finest wavelet.

    Grey levels are ``levels`` equal bins of -1..+1 (values beyond are clipped). Co-occurrence is taken at each of ``distances``, all
    directions of the grid together, beside its standard deviation over directions; names of longer distances carry it. ``sigmas`` are in
    voxels. A constant image has defined features.
    """

    levels: int = 16
    distances: tuple[int, ...] = (1, 2)
    sigmas: tuple[float, ...] = (0.8, 1.6, 3.2)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = _checked(images)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets other threads run, and each image is one thread's alone
            rows = list(pool.map(lambda image: list(self._features(image[0].astype(np.float64)).values()), images))
        return np.array(rows) if rows else np.zeros((0, len(self.names)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each column is, in order."""
        return tuple(self._features(np.zeros((4, 4))))

    def _features(self, image: np.ndarray) -> dict[str, float]:
        grey = np.clip(((image + 1) / 2 * self.levels).astype(np.int64), 0, self.levels - 1) + 1
        found = _those(STATISTICS, radiomics.statistics(image)) | radiomics.histogram(grey)
        for distance in self.distances:
            found |= self._cooccurrence(grey, distance)
        found |= _those(RUNS, radiomics.runs(grey)) | _those(ZONES, radiomics.zones(grey))
        found |= radiomics.differences(grey) | _those(DEPENDENCES, radiomics.dependences(grey))
        gradient = np.sqrt(sum(part**2 for part in np.gradient(image)))
        p90, p99 = np.percentile(gradient, (90, 99))
        found |= {"gradient_mean": gradient.mean(), "gradient_std": gradient.std(), "gradient_p90": p90, "gradient_p99": p99}
        found |= _diagonal(image)
        for sigma in self.sigmas:
            response = sigma**2 * ndimage.gaussian_laplace(image, sigma, mode="nearest")  # sigma^2: scale-normalised (Lindeberg 1998)
            found |= {f"log{sigma:g}_magnitude": np.abs(response).mean(), f"log{sigma:g}_std": response.std()}
            found[f"log{sigma:g}_kurtosis"] = _kurtosis(response)
        return found

    def _cooccurrence(self, grey: np.ndarray, distance: int) -> dict[str, float]:
        ways = [tuple(distance * step for step in way) for way in radiomics.directions(grey.ndim)]
        fitting = [way for way in ways if all(abs(step) < size for step, size in zip(way, grey.shape, strict=True))]
        counts = [radiomics.pairs(grey, way, self.levels) for way in fitting]
        each = [radiomics.cooccurrence(count) for count in counts]
        merged = radiomics.cooccurrence(sum(counts))
        found = {name: merged[name] for name in COOCCURRENCE}
        found |= {f"{name}_directions": float(np.std([one[name] for one in each])) for name in ANISOTROPY}
        return found if distance == 1 else {name.replace("cm_", f"cm{distance}_", 1): value for name, value in found.items()}


# Of some hundred features most repeat the grey levels or each other, and would fill the leading axes of any distance: with all of them, a
# blur of half a voxel was seen at 4.9 times real against real and noise of 2 % at 7.7, with these at 6.4 and 8.9 (60 slices of the phantom)
STATISTICS = ("stat_mean", "stat_var", "stat_skew", "stat_kurt", "stat_p10", "stat_p90")
COOCCURRENCE = ("cm_contrast", "cm_inv_diff_mom", "cm_corr", "cm_energy", "cm_joint_entr", "cm_info_corr1")
ANISOTROPY = COOCCURRENCE[:4]
RUNS = ("rlm_sre", "rlm_lre", "rlm_rlnu_norm", "rlm_r_perc", "rlm_rl_var", "rlm_rl_entr")
ZONES = ("szm_sze", "szm_lze", "szm_zsnu_norm", "szm_z_perc", "szm_zs_var", "szm_zs_entr")
DEPENDENCES = ("ngl_lde", "ngl_hde", "ngl_dcnu_norm", "ngl_dc_var", "ngl_dc_entr", "ngl_dc_energy")


def _diagonal(image: np.ndarray) -> dict[str, float]:
    """Magnitudes of the finest diagonal detail of the Haar wavelet (at every place): what is left of an image there is mostly noise."""
    detail = image
    for axis in range(image.ndim):
        detail = np.diff(detail, axis=axis) / np.sqrt(2)
    magnitude = np.abs(detail)
    p10, p25 = np.percentile(magnitude, (10, 25))
    return {"haar_magnitude": magnitude.mean(), "haar_std": detail.std(), "haar_p10": p10, "haar_p25": p25}


def _those(names: tuple[str, ...], features: dict[str, float]) -> dict[str, float]:
    return {name: features[name] for name in names}


def _kurtosis(values: np.ndarray) -> float:
    """Excess kurtosis; 0 for a constant."""
    squared = (values - values.mean()) ** 2
    variance = squared.mean()
    return float((squared * squared).mean() / variance**2 - 3) if variance > 1e-18 else 0.0


def _checked(images: np.ndarray) -> np.ndarray:
    right = images.ndim in (4, 5) and images.shape[1] == 1
    assert right, f"images are (case, 1, *space), not {images.shape}"
    return np.require(images, np.float32, ["C", "W"])  # a memory map is read-only, which torch warns of


def identity(extractor: Extractor) -> str:
    """Name of an extractor with its settings: two extractors of one version and identity give the same numbers."""
    return repr(extractor)


def code_of(*things: object) -> str:
    """SHA-256 of this package's code and of the files that define these things' types: another version may find other numbers under the
    same settings."""
    return sha256_of("".join([_package(), *(sha256_of(Path(inspect.getfile(type(thing)))) for thing in things)]).encode())


@cache
def _package() -> str:
    return sha256_of("".join(sha256_of(path) for path in sorted(Path(__file__).parent.rglob("*.py"))).encode())


def extract(extractor: Extractor, cohort: Cohort, cache: Path | None = None) -> np.ndarray:
    """Features of a cohort's images, ``(case, dimension)``, with few cases in memory at a time.

    ``cache`` is a folder: what an extractor of this identity found on a cohort of this digest is read from there, or written there.
    """
    kept = None
    if cache is not None:
        key = sha256_of(f"{identity(extractor)}\n{code_of(extractor)}\n{cohort.digest}".encode())[:32]
        kept = cache / f"{key}.npy"
        if kept.is_file():
            return np.load(kept, allow_pickle=False)
    rows = [extractor(np.zeros((0, 1, *cohort.header.shape), np.float32))]
    with tqdm(total=len(cohort), desc=type(extractor).__name__, leave=False) as bar:
        for start in range(0, len(cohort), CHUNK):
            cases = cohort.cases[start : start + CHUNK]
            rows.append(extractor(np.stack([cohort.pixels(case)[:1] for case in cases])))
            bar.update(len(cases))
    features = np.concatenate(rows)
    if kept is not None:
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}.partial")
        with partial.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        partial.replace(kept)
    return features
