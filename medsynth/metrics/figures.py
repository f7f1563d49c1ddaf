"""Curves of the evaluation, as PNG files: sums over cases, never an image. The same numbers give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medsynth.metrics.anatomy import label_volumes
from medsynth.metrics.intensity import bins_of, histograms, radial, wasserstein, within
from medsynth.metrics.score import Sample, Score

COLOURS = {"train": "#6b7885", "holdout": "#1f6fb2", "synthetic": "#d1790a"}
BINS = 100
TISSUES = 6  # rows of the figure


def intensity_histograms(samples: Mapping[str, Sample], path: Path) -> None:
    """Share of voxels by grey value (model units), real and synthetic, and how far the distribution functions lie apart."""
    edges = bins_of(samples.values(), BINS)
    shares = {name: histograms(sample.images, edges).mean(axis=0) for name, sample in samples.items()}
    _grey_values({"Grey values": shares}, edges, path)


def tissue_histograms(samples: Mapping[str, Sample], labels: Sequence[int], path: Path) -> None:
    """The same within each label, those first whose synthetic grey values lie farthest off; at most `TISSUES` of them."""
    edges = bins_of(samples.values(), BINS)
    rows = {}
    for label in labels:
        counts = {name: within(sample, label, edges).sum(axis=0) for name, sample in samples.items()}
        if all(count.any() for count in counts.values()):
            rows[f"Label {label}" if label else "Outside of all labels"] = {name: count / count.sum() for name, count in counts.items()}
    width = float(edges[1] - edges[0])
    worst = sorted(rows, key=lambda row: -wasserstein(rows[row]["holdout"], rows[row]["synthetic"], width))
    if worst:
        _grey_values({row: rows[row] for row in worst[:TISSUES]}, edges, path)


def beyond_holdout(shares: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``(bin,)`` for each other cohort: its distribution function less the held-out cases', at the bins' upper ends. Above zero it is
    darker; the area between the curve and zero is the `wasserstein` distance."""
    return {name: np.cumsum(each - shares["holdout"]) for name, each in shares.items() if name != "holdout"}


def _grey_values(rows: Mapping[str, Mapping[str, np.ndarray]], edges: np.ndarray, path: Path) -> None:
    """A row for each of these: ``{title: {cohort: share of voxels (bin,)}}``, on the left the shares, on the right `beyond_holdout`."""
    figure = Figure(figsize=(9.2, 3.0 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), (title, shares) in zip(figure.subplots(len(rows), 2, squeeze=False), rows.items(), strict=True):
        _dress(left, title, "model units", "share of voxels")
        for name, share in shares.items():
            left.stairs(share, edges, label=name, color=COLOURS[name], lw=1.4)
        left.set_yscale("log")  # air or background would hide everything else
        _dress(right, "Distribution function, less held-out", "model units", "share of voxels below")
        right.axhline(0, color=COLOURS["holdout"], lw=1.4)
        for name, difference in beyond_holdout(shares).items():
            right.plot(edges[1:], difference, label=name, color=COLOURS[name], lw=1.4)
        for axes in (left, right):
            axes.legend(fontsize=8, frameon=False)
    _write(figure, path)


def power_spectra(samples: Mapping[str, Sample], path: Path) -> None:
    """Radial power by frequency; the band holds 90 % of the held-out cases."""
    figure, axes = _figure("Power spectrum", "cycles per mm", "power")
    for name, sample in samples.items():
        frequency, rows = radial(sample.images, sample.spacing)
        logs = np.log10(rows + 1e-30)
        axes.plot(frequency, 10 ** logs.mean(axis=0), label=name, color=COLOURS[name], lw=1.4)
        if name == "holdout":
            low, high = np.percentile(logs, (5, 95), axis=0)
            axes.fill_between(frequency, 10**low, 10**high, color=COLOURS[name], alpha=0.15, lw=0, label="90 % of held-out cases")
    axes.set_yscale("log")
    _save(figure, axes, path)


def structures(samples: Mapping[str, Sample], path: Path) -> None:
    """Volumes of each label, a violin a cohort. The outer twentieths are cut off: they would show single persons."""
    labels = np.setdiff1d(np.unique(samples["train"].masks), [0])
    unit = "mL" if samples["train"].masks.ndim == 4 else "cm²"
    figure, axes = _figure("Structures", "label", unit)
    for k, (name, sample) in enumerate(samples.items()):
        volumes = label_volumes(sample.masks, labels, tuple(sample.spacing))
        middle = [np.clip(v, *np.percentile(v, (5, 95))) for v in volumes.T]
        places = np.arange(len(labels)) + 0.27 * (k - 1)
        # a cohort in which a structure never varies has no density, only a place
        varied = [i for i, v in enumerate(middle) if np.ptp(v) > 1e-9]
        if varied:
            for body in axes.violinplot([middle[i] for i in varied], places[varied], widths=0.25, showextrema=False)["bodies"]:
                body.set(facecolor=COLOURS[name], alpha=0.55)
        axes.plot(places, [np.median(v) for v in volumes.T], "s", color=COLOURS[name], ms=4, label=name)
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    _save(figure, axes, path)


def forest(scores: Sequence[Score], path: Path) -> None:
    """Every score with its interval beside its anchor; each row on its own scale, in half-widths of the anchor's interval."""
    rows = [s for s in scores if s.status == "ok"][::-1]
    figure, axes = _figure("Scores beside real against real", "difference from the anchor, in half-widths of its interval", "")
    figure.set_size_inches(6.4, 1.4 + 0.32 * max(len(rows), 1))
    for y, score in enumerate(rows):
        unit = max((score.anchor_interval[1] - score.anchor_interval[0]) / 2, 1e-12)
        low, middle, high = ((v - score.anchor) / unit for v in (score.interval[0], score.value, score.interval[1]))
        axes.plot([low, high], [y, y], color=COLOURS["synthetic"], lw=2)
        axes.plot(middle, y, "s", color=COLOURS["synthetic"], ms=5)
    axes.axvspan(-1, 1, color=COLOURS["holdout"], alpha=0.15, lw=0, label="real against real")
    axes.set_xscale("symlog", linthresh=2)
    axes.set_yticks(range(len(rows)), [f"{s.name} ({s.features})" if s.features else s.name for s in rows])
    _save(figure, axes, path)


def _figure(title: str, x: str, y: str) -> tuple[Figure, object]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _dress(axes, title, x, y)
    return figure, axes


def _dress(axes: object, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, axes: object, path: Path) -> None:
    axes.legend(fontsize=8, frameon=False)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    # no software version in the file: it would change the bytes
    figure.savefig(partial, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    partial.replace(path)
