"""Pictures and curves of the report, as PNG bytes. Nothing here reads a file or knows what a stage is.

Pictures show patients the way a reading room does (radiological display): the patient's right on the viewer's left, front or head on top.
Arrays are RAS+, so every plane is turned the same way. All pictures share one window, -1..+1 of the model's units, and keep the spacing.

The same arrays give the same bytes: no clock and no software version is written into a file.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image  # matplotlib brings it

INK, MUTED, BLUE, ORANGE, GREEN, RED = "#1d2733", "#6b7885", "#1f6fb2", "#d1790a", "#3d8a4e", "#b3261e"
LEVELS = (BLUE, ORANGE, GREEN, "#8a4fa3", RED, "#5f6b76", "#0f8a8a", "#a0641e")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.6,
}


def picture(image: np.ndarray, spacing: Sequence[float], longest: int = 256) -> np.ndarray:
    """An image ``(x, y)`` or ``(x, y, z)`` in model units as grey levels ``(row, column)``, uint8.

    A volume becomes its three orthogonal middle planes side by side: axial, coronal, sagittal. ``spacing`` is in mm; pixels are square,
    and no plane has a side of more than ``longest`` pixels.
    """
    planes = [((0, 1), image)] if image.ndim == 2 else [(axes, _middle(image, axes)) for axes in ((0, 1), (0, 2), (1, 2))]
    finest = min(spacing[: image.ndim])
    millimetres = [[n * spacing[axis] for n, axis in zip(plane.shape, axes, strict=True)] for axes, plane in planes]
    pixel = max(finest, max(side for sides in millimetres for side in sides) / longest)
    grey = [_square(plane, [side / pixel for side in sides]) for (_, plane), sides in zip(planes, millimetres, strict=True)]
    height = max(plane.shape[0] for plane in grey)
    strips = []
    for plane in grey:
        above = (height - plane.shape[0]) // 2
        strips.append(np.pad(plane, ((above, height - plane.shape[0] - above), (0, 0))))
        strips.append(np.zeros((height, 2), np.uint8))
    return np.concatenate(strips[:-1], axis=1)


def png(grey: np.ndarray) -> bytes:
    """Grey levels ``(row, column)``, uint8, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", optimize=True)
    return file.getvalue()


def mosaic(pictures: Sequence[np.ndarray], columns: int = 6, gap: int = 4) -> bytes:
    """Pictures of one size in rows of ``columns``, as one PNG file."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), 255, np.uint8)
    for i, grey in enumerate(pictures):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
    return png(sheet)


def curves(panels: Sequence[tuple[str, str, str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]], log: bool = False) -> bytes:
    """Panels side by side; each is ``(title, x label, y label, {name: (x, y)})``. ``log``: a logarithmic y, if all values are positive."""
    with _styled():
        figure = Figure(figsize=(4.6 * len(panels), 3.1), layout="constrained")
        for axes, (title, x_label, y_label, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
            for (name, (x, y)), colour in zip(lines.items(), np.resize(LEVELS, len(lines)), strict=True):
                axes.plot(x, y, color=str(colour), label=name, lw=1.4, marker="o" if len(x) < 6 else None, ms=4)
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
            if log and all(v > 0 for _, y in lines.values() for v in y):
                axes.set_yscale("log")
            if len(lines) > 1:
                axes.legend(fontsize=7.5, ncols=1 + len(lines) // 7)
        return _bytes(figure)


def histograms(panels: Sequence[tuple[str, str, Mapping[str, tuple[Sequence[float], Sequence[float]]], Mapping[str, float]]]) -> bytes:
    """Panels of step histograms; each is ``(title, x label, {name: (edges, shares)}, {name of a vertical line: x})``."""
    with _styled():
        figure = Figure(figsize=(7.5 if len(panels) == 1 else 9.2, 2.9 * -(-len(panels) // 2)), layout="constrained")
        places = np.ravel(figure.subplots(-(-len(panels) // 2), min(len(panels), 2)))
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, x_label, bars, marks) in zip(places, panels, strict=False):
            for (name, (edges, shares)), colour in zip(bars.items(), np.resize((BLUE, ORANGE, MUTED, GREEN), len(bars)), strict=True):
                axes.stairs(shares, edges, color=str(colour), label=name, lw=1.5, fill=False)
            for (name, x), dashes in zip(marks.items(), np.resize(("--", ":"), len(marks)), strict=True):
                axes.axvline(x, color=RED, lw=1.2, ls=str(dashes), label=name)
            axes.set(title=title, xlabel=x_label, ylabel="share of images")
            axes.legend(fontsize=7.5)
        return _bytes(figure)


def bars(title: str, x_label: str, values: Mapping[str, float]) -> bytes:
    """Horizontal bars from zero, the first on top."""
    with _styled():
        figure = Figure(figsize=(7.5, 0.9 + 0.2 * len(values)), layout="constrained")
        axes = figure.subplots()
        sizes = list(values.values())
        axes.barh(range(len(values)), sizes, color=[ORANGE if size > 0 else BLUE for size in sizes], height=0.7)
        axes.set_yticks(range(len(values)), list(values))
        axes.tick_params(axis="y", labelsize=7.5, length=0)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, lw=0.8)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel=x_label)
        return _bytes(figure)


def forest(
    title: str,
    x_label: str,
    rows: Sequence[tuple[str, float, tuple[float, float]]],
    band: tuple[float, float] | None = None,
    zero: bool = False,
) -> bytes:
    """A value with its interval a row, the first on top: ``(name, value, (low, high))``. ``band`` is shaded, ``zero`` a line there."""
    with _styled():
        figure = Figure(figsize=(6.4, 1.1 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (_, value, (low, high)) in enumerate(rows):
            colour = BLUE if y == 0 and band else ORANGE
            axes.plot([low, high], [y, y], color=colour, lw=2)
            axes.plot(value, y, "s", color=colour, ms=5)
        if band:
            axes.axvspan(*band, color=BLUE, alpha=0.12, lw=0)
        if zero:
            axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel=x_label)
        return _bytes(figure)


def settings(
    panels: Sequence[tuple[str, str, str, Sequence[tuple[str, float, tuple[float, float], bool]], tuple[float, float] | None]],
) -> bytes:
    """Values with their intervals, evenly spaced, panels side by side: ``(title, x label, y label, [(x, value, (low, high), own)], band)``.

    The one that is ``own`` is a square; ``band`` is shaded.
    """
    with _styled():
        figure = Figure(figsize=(max(5.0, 3.3 * len(panels)), 3.0), layout="constrained")
        for axes, (title, x_label, y_label, rows, band) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
            if band:
                axes.axhspan(*band, color=BLUE, alpha=0.2, lw=1.5, label="real against real")
                axes.legend(fontsize=7.5)
            axes.plot(range(len(rows)), [value for _, value, _, _ in rows], color=ORANGE, lw=1)
            for place, (_, value, (low, high), own) in enumerate(rows):
                axes.plot([place, place], [low, high], color=ORANGE, lw=2)
                axes.plot(place, value, "s" if own else "o", color=ORANGE, ms=7 if own else 4)
            axes.set_xticks(range(len(rows)), [x for x, *_ in rows])
            axes.grid(axis="x", visible=False)
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
        return _bytes(figure)


def ways(sigmas: np.ndarray, noisy: np.ndarray, expected: np.ndarray, spacing: Sequence[float]) -> bytes:
    """From noise to image, one column a noise level: above what the sampler holds, below what the denoiser expects at its end.

    ``noisy`` and ``expected`` are slices in model units, ``(case, level, x, y)``; the noisy ones are divided by ``sqrt(1 + sigma^2)``, so
    that their grey values stay in the window.
    """
    scaled = noisy.astype(np.float32) / np.sqrt(1 + sigmas[:, None, None] ** 2)
    rows = [row for pair in zip(scaled, expected, strict=True) for row in pair]
    with _styled():
        figure = Figure(figsize=(9.6, 0.35 + 0.94 * len(rows)))
        places = figure.subplots(len(rows), len(sigmas), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.06})
        figure.subplots_adjust(left=0.075, right=0.995, top=1 - 0.3 / (0.35 + 0.94 * len(rows)), bottom=0.005)
        for r, (axes_of_row, images) in enumerate(zip(places, rows, strict=True)):
            for axes, image, sigma in zip(axes_of_row, images, sigmas, strict=True):
                axes.imshow(picture(np.asarray(image, np.float32), spacing), cmap="gray", vmin=0, vmax=255)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
                if r == 0:
                    axes.set_title(f"{sigma:.2g}", fontsize=8, fontweight="normal", loc="center", pad=3)
            axes_of_row[0].set_ylabel("expected" if r % 2 else "noisy", fontsize=8)
        figure.text(0.005, 0.995, "sigma", fontsize=8, va="top", color=INK)
        return _bytes(figure)


def _middle(volume: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    (normal,) = {0, 1, 2} - set(axes)
    return np.take(volume, volume.shape[normal] // 2, axis=normal)


def _square(plane: np.ndarray, sides: Sequence[float]) -> np.ndarray:
    """A plane in RAS+ and model units, resampled to these sides and turned: rows and columns begin at the axes' far ends."""
    grey = np.clip((np.asarray(plane, np.float32) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    turned = Image.fromarray(np.ascontiguousarray(grey[::-1, ::-1].T))
    size = tuple(max(1, round(side)) for side in sides)
    # Pillow filters before it makes smaller, so that no fine pattern turns into a false one
    return np.asarray(turned if turned.size == size else turned.resize(size, Image.Resampling.BILINEAR))


def _styled():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _bytes(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return file.getvalue()
