"""Radiomic features as the Image Biomarker Standardisation Initiative defines them, under its names (Zwanenburg et al. 2020; the reference
manual is arXiv 1612.07003, section 3). They agree with its published values on its digital phantom (tests/test_radiomics.py).

``grey`` is an integer image ``(*space)`` in 2-D or 3-D: levels 1 to n inside, 0 outside of the region of interest. Directions are merged
before features are taken (IBSI "3D:mrg", in 2-D "2D:mrg" of one slice), neighbours are at Chebyshev distance 1. What a constant image
leaves undefined is 0, its correlation 1 and its coarseness, as the manual says, a million.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

Features = dict[str, float]


def directions(dims: int) -> list[tuple[int, ...]]:
    """One of each pair of opposite neighbours: 4 directions in 2-D, 13 in 3-D."""
    return [way for way in product((-1, 0, 1), repeat=dims) if way > (0,) * dims]


def statistics(values: np.ndarray) -> Features:
    """Intensity-based statistics (section 3.3), but for those that divide by a mean or grow with the size."""
    values = np.asarray(values, np.float64).ravel()
    low, p10, p25, median, p75, p90, high = np.percentile(values, (0, 10, 25, 50, 75, 90, 100))
    centred = values - values.mean()
    squared = centred * centred
    variance = float(squared.mean())
    robust = values[(values >= p10) & (values <= p90)]
    return {
        "stat_mean": float(values.mean()),
        "stat_var": variance,
        "stat_skew": float((squared * centred).mean()) / variance**1.5 if variance > 1e-18 else 0.0,
        "stat_kurt": float((squared * squared).mean()) / variance**2 - 3 if variance > 1e-18 else 0.0,
        "stat_median": median,
        "stat_min": low,
        "stat_p10": p10,
        "stat_p90": p90,
        "stat_max": high,
        "stat_iqr": p75 - p25,
        "stat_range": high - low,
        "stat_mad": float(np.abs(centred).mean()),
        "stat_rmad": float(np.abs(robust - robust.mean()).mean()),
        "stat_medad": float(np.abs(values - median).mean()),
        "stat_rms": float(np.sqrt((values**2).mean())),
    }


def histogram(grey: np.ndarray) -> Features:
    """Entropy and uniformity of the levels (section 3.4)."""
    share = np.bincount(grey[grey > 0]) / np.count_nonzero(grey)
    return {"ih_entropy": _entropy(share), "ih_uniformity": float((share**2).sum())}


def pairs(grey: np.ndarray, offset: tuple[int, ...], levels: int) -> np.ndarray:
    """Grey level co-occurrence: how many pairs of voxels at this offset have two levels, ``(levels, levels)``, counted both ways."""
    here, there = _overlap(grey.shape, offset)
    found = grey[here] * (levels + 1) + grey[there]
    counts = np.bincount(found.ravel(), minlength=(levels + 1) ** 2).reshape(levels + 1, levels + 1)[1:, 1:]
    return counts + counts.T


def cooccurrence(counts: np.ndarray) -> Features:
    """Features of a co-occurrence matrix (section 3.6; Haralick et al. 1973)."""
    p = counts / counts.sum()
    n = len(p)
    level = np.arange(1, n + 1)
    i, j = level[:, None], level[None, :]
    apart = np.abs(i - j)
    margin = p.sum(axis=1)
    difference = np.bincount(apart.ravel(), p.ravel(), minlength=n)
    total = np.bincount((i + j).ravel(), p.ravel(), minlength=2 * n + 1)
    k, s = np.arange(len(difference)), np.arange(len(total))
    mean, variance = float((i * p).sum()), float(((i - (i * p).sum()) ** 2 * p).sum())
    autocorrelation = float((i * j * p).sum())
    joint = _entropy(p)
    single = _entropy(margin)
    outer = margin[:, None] * margin[None, :]
    crossed = float(-(p[outer > 0] * np.log2(outer[outer > 0])).sum())
    independent = _entropy(outer)
    average = float((k * difference).sum())
    return {
        "cm_joint_max": float(p.max()),
        "cm_joint_avg": mean,
        "cm_joint_var": variance,
        "cm_joint_entr": joint,
        "cm_diff_avg": average,
        "cm_diff_var": float(((k - average) ** 2 * difference).sum()),
        "cm_diff_entr": _entropy(difference),
        "cm_sum_avg": 2 * mean,
        "cm_sum_var": float(((s - 2 * mean) ** 2 * total).sum()),
        "cm_sum_entr": _entropy(total),
        "cm_energy": float((p**2).sum()),
        "cm_contrast": float((k**2 * difference).sum()),
        "cm_inv_diff": float((difference / (1 + k)).sum()),
        "cm_inv_diff_norm": float((difference / (1 + k / n)).sum()),
        "cm_inv_diff_mom": float((difference / (1 + k**2)).sum()),
        "cm_inv_diff_mom_norm": float((difference / (1 + (k / n) ** 2)).sum()),
        "cm_inv_var": float((difference[1:] / k[1:] ** 2).sum()),
        "cm_corr": (autocorrelation - mean**2) / variance if variance > 1e-12 else 1.0,
        "cm_auto_corr": autocorrelation,
        "cm_clust_shade": float(((s - 2 * mean) ** 3 * total).sum()),
        "cm_clust_prom": float(((s - 2 * mean) ** 4 * total).sum()),
        "cm_info_corr1": (joint - crossed) / single if single > 1e-12 else 0.0,
        "cm_info_corr2": float(np.sqrt(max(0.0, 1 - np.exp(-2 * (independent - joint))))),
    }


def runs(grey: np.ndarray) -> Features:
    """Grey level run lengths (section 3.7; Galloway 1975): lines of voxels of one level, along every direction."""
    level, length = [], []
    for way in directions(grey.ndim):
        order, line = _lines(grey.shape, way)
        along = grey.ravel()[order]
        starts = np.flatnonzero(np.concatenate([[True], (along[1:] != along[:-1]) | (line[1:] != line[:-1])]))
        level.append(along[starts])
        length.append(np.diff(np.append(starts, len(along))))
    level, length = np.concatenate(level), np.concatenate(length)
    inside = level > 0
    names = ("sre", "lre", "lgre", "hgre", "srlge", "srhge", "lrlge", "lrhge", "glnu", "glnu_norm", "rlnu", "rlnu_norm", "r_perc")
    voxels = np.count_nonzero(grey) * len(directions(grey.ndim))
    return _emphasised("rlm", (*names, "gl_var", "rl_var", "rl_entr"), level[inside], length[inside], voxels)


def zones(grey: np.ndarray) -> Features:
    """Grey level size zones (section 3.8; Thibault et al. 2014): connected parts of one level, corners included."""
    level, size = [], []
    for g in np.unique(grey[grey > 0]):
        found = np.bincount(ndimage.label(grey == g, np.ones((3,) * grey.ndim))[0].ravel())[1:]
        level.append(np.full(len(found), g))
        size.append(found)
    names = ("sze", "lze", "lgze", "hgze", "szlge", "szhge", "lzlge", "lzhge", "glnu", "glnu_norm", "zsnu", "zsnu_norm", "z_perc")
    return _emphasised("szm", (*names, "gl_var", "zs_var", "zs_entr"), np.concatenate(level), np.concatenate(size), np.count_nonzero(grey))


def dependences(grey: np.ndarray) -> Features:
    """Neighbouring grey level dependence (section 3.11; Sun and Wee 1983), coarseness 0: how many neighbours have the same level."""
    same = np.ones(grey.shape, np.int64)  # the voxel itself
    for way in directions(grey.ndim):
        here, there = _overlap(grey.shape, way)
        equal = grey[here] == grey[there]
        same[here] += equal
        same[there] += equal
    inside = grey > 0
    names = ("lde", "hde", "lgce", "hgce", "ldlge", "ldhge", "hdlge", "hdhge", "glnu", "glnu_norm", "dcnu", "dcnu_norm", "dc_perc")
    found = _emphasised("ngl", (*names, "gl_var", "dc_var", "dc_entr"), grey[inside], same[inside], int(inside.sum()))
    del found["ngl_dc_perc"]  # always 1
    share = np.bincount(grey[inside] * (same.max() + 1) + same[inside]) / inside.sum()
    return found | {"ngl_dc_energy": float((share**2).sum())}


def differences(grey: np.ndarray) -> Features:
    """Neighbourhood grey tone differences (section 3.10; Amadasun and King 1989): a voxel's level less the mean of its neighbours'."""
    inside = (grey > 0).astype(np.float64)
    kernel = np.ones((3,) * grey.ndim)
    neighbours = np.rint(_summed(inside, kernel.shape) - inside)
    total = np.rint(_summed(grey * inside, kernel.shape) - grey)
    used = (grey > 0) & (neighbours > 0)
    level = grey[used]
    if not level.size:
        return {"ngt_coarseness": 1e6, "ngt_contrast": 0.0, "ngt_busyness": 0.0, "ngt_complexity": 0.0, "ngt_strength": 0.0}
    apart = np.abs(level - total[used] / neighbours[used])
    n, s = np.bincount(level).astype(np.float64), np.bincount(level, apart)
    p = n / n.sum()
    g = np.flatnonzero(p)
    i, j = g[:, None], g[None, :]
    pi, pj, si, sj = p[i], p[j], s[i], s[j]
    spread = float((pi * pj * (i - j) ** 2).sum()) / (len(g) * (len(g) - 1)) if len(g) > 1 else 0.0
    weighted = float((p * s).sum())
    between = float(np.abs(i * pi - j * pj).sum())
    return {
        "ngt_coarseness": min(1 / weighted, 1e6) if weighted > 0 else 1e6,
        "ngt_contrast": spread * float(s.sum()) / float(n.sum()),
        "ngt_busyness": weighted / between if between > 0 else 0.0,
        "ngt_complexity": float((np.abs(i - j) * (pi * si + pj * sj) / (pi + pj)).sum()) / float(n.sum()),
        "ngt_strength": float(((pi + pj) * (i - j) ** 2).sum()) / float(s.sum()) if s.sum() > 0 else 0.0,
    }


def _emphasised(family: str, names: tuple[str, ...], level: np.ndarray, size: np.ndarray, voxels: int) -> Features:
    """What run lengths, zones and dependences share: features of the counts of (level, size). One entry a run, zone or voxel."""
    count, widest = len(level), int(size.max()) + 1
    times = np.bincount(level * widest + size)
    pairs = np.flatnonzero(times)
    share = times[pairs] / count
    level, size = (part.astype(np.float64) for part in np.divmod(pairs, widest))
    by_level, by_size = (np.bincount(part.astype(int), share) for part in (level, size))
    level2, size2 = level**2, size**2
    values = [
        share @ (1 / size2),
        share @ size2,
        share @ (1 / level2),
        share @ level2,
        share @ (1 / (level2 * size2)),
        share @ (level2 / size2),
        share @ (size2 / level2),
        share @ (level2 * size2),
        count * (by_level @ by_level),
        by_level @ by_level,
        count * (by_size @ by_size),
        by_size @ by_size,
        count / voxels,
        share @ (level - share @ level) ** 2,
        share @ (size - share @ size) ** 2,
        _entropy(share),
    ]
    return {f"{family}_{name}": float(value) for name, value in zip(names, values, strict=True)}


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _overlap(shape: tuple[int, ...], offset: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels that have another one at this offset, and those others."""
    here = tuple(slice(max(0, -step), size - max(0, step)) for step, size in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, step), size - max(0, -step)) for step, size in zip(offset, shape, strict=True))
    return here, there


def _summed(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sums over a window of this shape; outside there is nothing."""
    for axis, width in enumerate(shape):
        image = ndimage.correlate1d(image, np.ones(width), axis=axis, mode="constant")
    return image


@lru_cache(maxsize=32)
def _lines(shape: tuple[int, ...], way: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All voxels in the order of the lines along a direction, and the line of each (flat indices)."""
    place = np.indices(shape)
    back = [at if step > 0 else size - 1 - at for at, step, size in zip(place, way, shape, strict=True) if step]
    steps = np.min(back, axis=0)  # from the border along the line
    strides = np.array([int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))])
    line = (np.arange(np.prod(shape)).reshape(shape) - steps * int(strides @ np.array(way))).ravel()
    order = np.lexsort((steps.ravel(), line))
    return order, line[order]
