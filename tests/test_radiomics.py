"""The Image Biomarker Standardisation Initiative's digital phantom, and its published consensus values.

Phantom: Alex Zwanenburg, https://github.com/theibsi/data_sets, CC BY 4.0. Values: Zwanenburg et al. 2020 (Radiology 295:328) and the
reference manual (arXiv 1612.07003), three significant digits, aggregation "3D:mrg".
"""

import numpy as np
import pytest

from medsynth import radiomics

PHANTOM = np.array(  # slice, row, column; 0 is outside of the region of interest
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
LEVELS = 6
PUBLISHED = {
    "stat_mean": 2.15, "stat_var": 3.05, "stat_skew": 1.08, "stat_kurt": -0.355, "stat_median": 1, "stat_min": 1, "stat_p10": 1,
    "stat_p90": 4, "stat_max": 6, "stat_iqr": 3, "stat_range": 5, "stat_mad": 1.55, "stat_rmad": 1.11, "stat_medad": 1.15, "stat_rms": 2.77,
    "ih_entropy": 1.27, "ih_uniformity": 0.512,
    "cm_joint_max": 0.509, "cm_joint_avg": 2.15, "cm_joint_var": 3.13, "cm_joint_entr": 2.57, "cm_diff_avg": 1.38, "cm_diff_var": 3.21,
    "cm_diff_entr": 1.64, "cm_sum_avg": 4.3, "cm_sum_var": 7.41, "cm_sum_entr": 2.11, "cm_energy": 0.291, "cm_contrast": 5.12,
    "cm_inv_diff": 0.688, "cm_inv_diff_norm": 0.856, "cm_inv_diff_mom": 0.631, "cm_inv_diff_mom_norm": 0.902, "cm_inv_var": 0.0574,
    "cm_corr": 0.183, "cm_auto_corr": 5.19, "cm_clust_shade": 17.4, "cm_clust_prom": 147, "cm_info_corr1": -0.0288, "cm_info_corr2": 0.269,
    "rlm_sre": 0.729, "rlm_lre": 2.76, "rlm_lgre": 0.607, "rlm_hgre": 9.64, "rlm_srlge": 0.372, "rlm_srhge": 8.67, "rlm_lrlge": 2.16,
    "rlm_lrhge": 15.6, "rlm_glnu": 281, "rlm_glnu_norm": 0.43, "rlm_rlnu": 328, "rlm_rlnu_norm": 0.501, "rlm_r_perc": 0.68,
    "rlm_gl_var": 3.48, "rlm_rl_var": 0.598, "rlm_rl_entr": 2.62,
    "szm_sze": 0.255, "szm_lze": 550, "szm_lgze": 0.253, "szm_hgze": 15.6, "szm_szlge": 0.0256, "szm_szhge": 2.76, "szm_lzlge": 503,
    "szm_lzhge": 1.49e3, "szm_glnu": 1.4, "szm_glnu_norm": 0.28, "szm_zsnu": 1, "szm_zsnu_norm": 0.2, "szm_z_perc": 0.0676,
    "szm_gl_var": 2.64, "szm_zs_var": 331, "szm_zs_entr": 2.32,
    "ngt_coarseness": 0.0296, "ngt_contrast": 0.584, "ngt_busyness": 6.54, "ngt_complexity": 13.5, "ngt_strength": 0.763,
    "ngl_lde": 0.045, "ngl_hde": 109, "ngl_lgce": 0.693, "ngl_hgce": 7.66, "ngl_ldlge": 0.00963, "ngl_ldhge": 0.736, "ngl_hdlge": 102,
    "ngl_hdhge": 235, "ngl_glnu": 37.9, "ngl_glnu_norm": 0.512, "ngl_dcnu": 4.86, "ngl_dcnu_norm": 0.0657, "ngl_gl_var": 3.05,
    "ngl_dc_var": 22.1, "ngl_dc_entr": 4.4, "ngl_dc_energy": 0.0533,
}  # fmt: skip


def all_of(grey: np.ndarray, levels: int) -> dict[str, float]:
    counts = sum(radiomics.pairs(grey, way, levels) for way in radiomics.directions(grey.ndim))
    families = (radiomics.histogram, radiomics.runs, radiomics.zones, radiomics.differences, radiomics.dependences)
    found = radiomics.statistics(grey[grey > 0]) | radiomics.cooccurrence(counts)
    for family in families:
        found |= family(grey)
    return found


def test_every_feature_has_its_published_value_on_the_digital_phantom():
    found = all_of(PHANTOM, LEVELS)
    assert found.keys() == PUBLISHED.keys()
    assert {name: float(f"{value:.3g}") for name, value in found.items()} == pytest.approx(PUBLISHED, rel=0.005)


def test_the_axes_and_their_directions_mean_nothing():
    turned = all_of(np.ascontiguousarray(np.transpose(PHANTOM, (2, 0, 1))[:, ::-1]), LEVELS)
    assert turned == pytest.approx(all_of(PHANTOM, LEVELS), rel=1e-12)


def test_runs_of_a_slice_equal_a_walk_along_every_line():
    grey = np.random.default_rng(0).integers(1, 4, (7, 5))
    lengths = []
    for di, dj in ((0, 1), (1, -1), (1, 0), (1, 1)):
        for i, j in np.ndindex(*grey.shape):
            before = i - di, j - dj
            if 0 <= before[0] < 7 and 0 <= before[1] < 5 and grey[before] == grey[i, j]:
                continue
            at, length = (i, j), 0
            while 0 <= at[0] < 7 and 0 <= at[1] < 5 and grey[at] == grey[i, j]:
                at, length = (at[0] + di, at[1] + dj), length + 1
            lengths.append(length)
    found = radiomics.runs(grey)
    assert found["rlm_lre"] == pytest.approx(np.mean(np.square(lengths)))
    assert found["rlm_r_perc"] == pytest.approx(len(lengths) / (35 * 4))


@pytest.mark.parametrize("grey", [np.full((6, 5), 3), np.full((4, 4, 4), 1), np.array([[2]])], ids=["slice", "volume", "voxel"])
def test_a_constant_image_has_defined_features(grey):
    families = (radiomics.histogram, radiomics.runs, radiomics.zones, radiomics.differences, radiomics.dependences)
    assert all(np.isfinite(list(family(grey).values())).all() for family in families)
