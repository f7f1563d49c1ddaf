"""Curves of the evaluation, as PNG files: sums over cases, never an image. The same numbers give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medsynth.metrics.anatomy import label_volumes
from medsynth.metrics.intensity import histograms, radial
from medsynth.metrics.score import Sample, Score

COLOURS = {"train": "#6b7885", "holdout": "#1f6fb2", "synthetic": "#d1790a"}


def intensity_histograms(samples: Mapping[str, Sample], path: Path) -> None:
    """Share of voxels by grey value (model units), real and synthetic."""
    low, high = (f([f(s.images.min(), s.images.max()) for s in samples.values()]) for f in (min, max))
    edges = np.linspace(low, max(high, low + 1e-6), 101)
    figure, axes = _figure("Grey values", "model units", "share of voxels")
    for name, sample in samples.items():
        axes.stairs(histograms(sample.images, edges).mean(axis=0), edges, label=name, color=COLOURS[name], lw=1.4)
    axes.set_yscale("log")  # air or background would hide everything else
    _save(figure, axes, path)


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
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: object, path: Path) -> None:
    axes.legend(fontsize=8, frameon=False)
    partial = path.with_name(f".{path.name}.partial")
    # no software version in the file: it would change the bytes
    figure.savefig(partial, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    partial.replace(path)
