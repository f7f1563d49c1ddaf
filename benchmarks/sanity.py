"""Does the metric that is meant for a defect rise with it? The nine injected defects at five severities, each under its designated metric.

On phantom CT slices with and without a lesion and, by ``python -m benchmarks.sanity``, on hippocampus MR volumes with their masks; results
go to results/sanity/. A ratio is to the value of the same held-out cases without the defect.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from benchmarks.small_model import slices
from benchmarks.table import RESULTS, Row, Table, processor, write
from medsynth.data.sources.phantom_anatomy import truth
from medsynth.encoder import Learner, moved
from medsynth.features import Extractor, RandomConvolution, Texture
from medsynth.io import nifti
from medsynth.metrics.anatomy import Implausible
from medsynth.metrics.defects import DEFECTS, Material, collapse, material, wrong_anatomy
from medsynth.metrics.fidelity import ConditionFidelity, PredictedLabels
from medsynth.metrics.frechet import FrechetDistance
from medsynth.metrics.intensity import Intensity, Spectrum
from medsynth.metrics.learned import qualify, through
from medsynth.metrics.manifold import Authenticity, Manifold
from medsynth.metrics.sanity import badges, badness
from medsynth.metrics.score import Metric, Sample
from medsynth.rng import generator_for

DATA = Path("../shared/data/hippocampus_mr")
DESIGNATED: Mapping[str, tuple[str, Metric]] = {
    "blur": ("spectrum", Spectrum()),
    "noise": ("radiomics", FrechetDistance(features="texture")),
    "gain": ("intensity", Intensity()),
    "bias field": ("frechet", FrechetDistance(features="random_convolution")),
    "dropped class": ("predicted_labels", PredictedLabels(features="random_convolution")),
    "collapse": ("coverage", Manifold(share="coverage", features="random_convolution")),
    "copies": ("authenticity", Authenticity(features="random_convolution")),
    "wrong anatomy": ("implausible", Implausible()),
    "swapped labels": ("condition_fidelity", ConditionFidelity(features="random_convolution")),
}
DRAWS = 20
BY_NAME = {defect.name: defect for defect in DEFECTS}

Images = tuple[np.ndarray, np.ndarray, list[str]]  # (case, *space) in model units, masks, classes


def main() -> int:
    sets: Mapping[str, Callable[[], Images]] = {"Phantom CT slices": lambda: phantoms(360, 40), "Hippocampus MR": hippocampus}
    found = []
    for name, images in sets.items():
        try:
            found += tables(name, *images(), steps=300)
        except FileNotFoundError as missing:
            print(f"{name}: left out, {missing}", file=sys.stderr)
    print("\n".join(table.markdown() for table in found))
    print(f"written to {write(found, hardware=processor(), conditions={'CPUs': os.cpu_count()}, folder=RESULTS / 'sanity')}")
    return 0


def measure(tiny: bool) -> list[Table]:
    return tables("Phantom CT slices", *phantoms(*((150, 16) if tiny else (240, 32))), steps=2 if tiny else 100)


def phantoms(count: int, size: int) -> Images:
    images = slices(range(count), size)
    return images, (images > 0.35).astype(np.uint8), ["lesion" if truth(0, i).lesion > 0 else "none" for i in range(count)]


def hippocampus(folder: Path = DATA) -> Images:
    """Volumes on a grid of 16x24x16; the class is whether the structure is larger than the median's."""
    paths = sorted((folder / "images").glob("*.nii*"))
    if not paths:
        raise FileNotFoundError(folder)
    images, masks = [], []
    for path in paths:
        image, mask = (np.asarray(nifti.read(p)[0], np.float32).squeeze() for p in (path, folder / "labels" / path.name))
        factors = [n / m for n, m in zip((16, 24, 16), image.shape, strict=True)]
        low, high = np.percentile(image, (0.5, 99.5))
        small = ndimage.zoom(np.clip((image - low) / (high - low) * 2 - 1, -1, 1), factors, order=1, grid_mode=True, mode="nearest")
        images.append(small)
        masks.append(ndimage.zoom(mask, factors, order=0, grid_mode=True, mode="nearest").astype(np.uint8))
    sizes = np.array([(mask > 0).mean() for mask in masks])
    order = generator_for(0, "split").permutation(len(images))
    return np.stack(images)[order], np.stack(masks)[order], ["large" if size > np.median(sizes) else "small" for size in sizes[order]]


def tables(name: str, images: np.ndarray, masks: np.ndarray, classes: list[str], *, steps: int) -> list[Table]:
    made, extractors = spoilable(images, masks, classes, steps=steps)
    encoders = [space for space in extractors if space.startswith("encoder")]
    views = moved(torch.from_numpy(made.clean.images), generator_for(0, "qualify")).numpy()
    trials = {space: qualify(space, made, extractors[space](views)) for space in encoders}
    passed = [space for space in encoders if trials[space].passed]
    rows: list[Row] = []
    for defect, (title, metric) in DESIGNATED.items():
        (row,) = badges({title: metric}, made, {"encoder": passed or encoders}, "full", [BY_NAME[defect]])
        worse = [badness(metric.best, value, row["null"]) for value in row["values"]]
        rises = all(b > a for a, b in pairwise(worse))
        values = {f"severity {k + 1}": value for k, value in enumerate(row["values"])}
        rows.append(
            {"defect": defect, "metric": title, "none": max(row["null"], 0.0)} | values | {"rises": str(rises), "sees": str(row["sees"])}
        )
    return [
        Table(title=f"{name}: the metric for each defect", note=_note(made, steps), rows=rows),
        Table(title=f"{name}: bars", note=_told(trials), rows=_bars(made, passed or encoders)),
    ]


def spoilable(images: np.ndarray, masks: np.ndarray, classes: list[str], *, steps: int) -> tuple[Material, Mapping[str, Extractor]]:
    """Two thirds for training, one third held out, with three encoders of the former."""
    images = images[:, None].astype(np.float32)
    train = 2 * len(images) // 3
    people = [f"subject {i}" for i in range(len(images))]
    encoders = {f"encoder {k}": Learner(seed=k, steps=steps).fit(images[:train], people[:train], "train") for k in range(3)}
    extractors: Mapping[str, Extractor] = {"random_convolution": RandomConvolution(), "texture": Texture(), **encoders}

    def described(what: str, images: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: extractor(images) for name, extractor in extractors.items()}

    def part(rows: slice) -> Sample:
        return Sample(
            images=images[rows],
            features=described("", images[rows]),
            subjects=people[rows],
            spacing=(1.0,) * (images.ndim - 2),
            conditions=[{"class": value} for value in classes[rows]],
            masks=masks[rows],
        )

    return material(part(slice(train)), part(slice(train, None)), 200, described, seed=0), extractors


def ratio(made: Material, metric: Metric, defect: str, severity: float) -> float:
    """The metric at a severity over its value without the defect."""
    found = BY_NAME[defect]
    whole, spoilt = values(made, metric, found.make(made, found.nothing), found.make(made, severity))
    return spoilt / max(whole, 1e-12)


def values(made: Material, metric: Metric, *samples: Sample) -> list[float]:
    """The metric of each of the samples against the reference."""
    sides = (made.reference, *samples)
    real, *rows = np.split(np.arange(sum(map(len, sides))), np.cumsum([len(side) for side in sides])[:-1])
    comparison = metric(made.train, *sides)
    return [comparison.value(real, each) for each in rows]


def halves(made: Material, metric: Metric, seed: int) -> float:
    """Real halves against each other, over the anchor: training against held-out cases at the same number."""
    order = generator_for(seed, "halves").permutation(len(made.reference))
    first, second = np.array_split(order, 2)
    held = generator_for(seed, "held").permutation(len(made.clean))[: len(first)]
    comparison = metric(made.train, made.reference, made.clean)
    return comparison.value(first, second) / max(comparison.value(first, len(made.reference) + held), 1e-12)


def _bars(made: Material, encoders: list[str]) -> list[Row]:
    texture, convolution = FrechetDistance(features="texture"), FrechetDistance(features="random_convolution")
    coverage = Manifold(share="coverage", features="random_convolution")
    collapsed = values(made, coverage, *(collapse(replace(made, seed=seed), 8) for seed in range(DRAWS)))
    misplaced = values(made, Implausible(), made.clean, *(wrong_anatomy(replace(made, seed=seed), 0.25) for seed in range(3)))
    few = [halves(made, convolution, seed) for seed in range(DRAWS)]
    views = [_through(made, space) for space in encoders]
    dropped = [ratio(view, FrechetDistance(features="encoder"), "dropped class", 1.0) for view in views]
    return [
        {"bar": "texture Frechet ratio at blur of 0.5 voxels", "asked": "at least 5", "found": ratio(made, texture, "blur", 0.5)},
        {"bar": "texture Frechet ratio at noise of 2 %", "asked": "at least 5", "found": ratio(made, texture, "noise", 0.02)},
        {
            "bar": "dropped class, worst seed's Frechet ratio (of those that passed; of all where none did)",
            "asked": "at least 1.4",
            "found": min(dropped),
        },
        {
            "bar": f"coverage at one eighth unique, mean of {DRAWS} draws",
            "asked": "at most 0.6",
            "found": float(np.mean(collapsed)),
        },
        {
            "bar": "flagged where a quarter has wrong anatomy, mean of 3 draws",
            "asked": "at least 0.12",
            "found": float(np.mean(misplaced[1:])),
        },
        {"bar": "flagged of real cases", "asked": "at most 0.03", "found": misplaced[0]},
        {"bar": f"real halves over the anchor, median of {DRAWS}", "asked": "0.5 to 2", "found": float(np.median(few))},
    ]


def _through(made: Material, space: str) -> Material:
    parts = {name: through(getattr(made, name), "encoder", space) for name in ("train", "reference", "copied", "clean")}
    return replace(made, **parts)


def _note(made: Material, steps: int) -> str:
    severities = "; ".join(f"{defect.name} {', '.join(f'{s:g}' for s in defect.severities)} {defect.unit}" for defect in DEFECTS)
    return (
        f"{len(made.clean)} held-out and {len(made.reference)} reference cases of {'x'.join(map(str, made.clean.images.shape[2:]))}; "
        f"encoders of {steps} steps; the class that is dropped is {made.forgotten}. Severities: {severities}."
    )


def _told(trials: Mapping[str, object]) -> str:
    return "Encoders: " + "; ".join(f"{space} {'passed' if t.passed else t.reason}" for space, t in trials.items()) + "."


if __name__ == "__main__":
    sys.exit(main())
