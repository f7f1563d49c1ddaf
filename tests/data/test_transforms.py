"""There and back: grids that keep every voxel's place in the world, scales that can be undone."""

import time
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.data.transforms import canonical_affine, geometry_in, placed, scale_of, slices, to_grid, to_model, to_stored
from medsynth.errors import SettingsError, UnreadableImage
from medsynth.volume import Geometry, Volume

ORIENTATIONS = ["".join(codes) for axes in permutations(["RL", "AP", "SI"]) for codes in product(*axes)]
SLOPE = np.array([2.0, -3.0, 5.0])  # of the ramp below, per mm in RAS


def ramp(shape, affine) -> np.ndarray:
    """An image whose every voxel says where it is: SLOPE . world + 7."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return (world @ SLOPE + 7).astype(np.float32)


def oriented(shape, spacing, orientation) -> Volume:
    affine = np.array(canonical_affine(shape, spacing, orientation))
    affine[:3, 3] += (11.0, -5.0, 3.0)
    return Volume(ramp(shape, affine)[None], affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_any_orientation_keeps_every_value_at_its_place_in_the_world(orientation):
    volume = oriented((5, 6, 7), (1.0, 2.0, 3.0), orientation)
    assert volume.geometry.orientation == orientation
    array, _, affine = placed(volume, size=(None, None, None), spacing=(1, 1, 1))
    assert Geometry(array.shape, affine).orientation == "RAS"
    np.testing.assert_allclose(array, ramp(array.shape, affine), atol=1e-4)
    assert sorted(array.ravel()) == sorted(volume.array.ravel())


@pytest.mark.parametrize("target", ["RAS", "LPS", "SPR"])
@pytest.mark.parametrize("spacing", [(0.7, 1.3, 2.0), (1.0, 1.0, 1.0), (2.5, 3.1, 2.2)])
def test_resampling_and_cropping_keep_a_ramp_where_it_was(target, spacing):
    volume = oriented((24, 26, 22), (1.0, 1.1, 0.9), "LPI")
    array, _, affine = placed(volume, size=(6, 5, 7), spacing=spacing, orientation=target)
    assert array.shape == (6, 5, 7)
    assert Geometry(array.shape, affine).spacing == pytest.approx(spacing)
    inner = (slice(1, -1),) * 3  # the widened triangles are cut at the image's edge
    np.testing.assert_allclose(array[inner], ramp(array.shape, affine)[inner], atol=1e-3)


def test_the_centre_of_the_image_is_the_centre_of_the_grid():
    volume = oriented((20, 21, 22), (1.0, 1.5, 2.0), "RAS")
    centre = volume.affine @ [(20 - 1) / 2, (21 - 1) / 2, (22 - 1) / 2, 1]
    _, _, affine = placed(volume, size=(8, 9, 10), spacing=(2.0, 2.0, 3.0))
    np.testing.assert_allclose(affine @ [3.5, 4.0, 4.5, 1], centre, atol=1e-9)


def test_a_grid_that_fits_already_is_copied_bit_by_bit():
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=(1, 9, 8, 7)).astype(np.float32), np.diag([1.5, 1.5, 3.0, 1.0]))
    array, _ = to_grid(volume, size=(9, 8, 7), spacing=(1.5, 1.5, 3.0))
    np.testing.assert_array_equal(array, volume.array[0])
    cropped, _ = to_grid(volume, size=(4, 5, 7), spacing=(1.5, 1.5, 3.0))
    np.testing.assert_array_equal(cropped, volume.array[0, 2:6, 1:6])


def test_padding_takes_the_lowest_intensity_and_label_zero():
    volume = Volume(np.full((1, 2, 2, 2), -1000.0, np.float32), np.eye(4), np.ones((2, 2, 2), np.uint8))
    volume.array[0, 0] = 50
    for spacing in (1.0, 0.5, 2.0):
        array, mask = to_grid(volume, size=(8, 8, 8), spacing=(spacing,) * 3)
        outside = mask == 0
        assert outside.any()
        assert (~outside).any()
        assert (array[outside] == -1000).all()


def test_shrinking_is_antialiased_and_agrees_with_pytorchs():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(48, 36)).astype(np.float32)
    volume = Volume(image[None, :, :, None], np.eye(4))
    for size, ratio in (((16, 12), 3.0), ((32, 24), 1.5), ((96, 72), 0.5)):
        array, _ = to_grid(volume, size=(*size, None), spacing=(ratio, ratio, 1.0))
        same = torch.nn.functional.interpolate(torch.from_numpy(image)[None, None], size, mode="bilinear", antialias=True)[0, 0].numpy()
        inner = (slice(2, -2),) * 2  # PyTorch cuts its triangles elsewhere at the edge
        np.testing.assert_allclose(array[(*inner, 0)], same[inner], atol=0.1 if ratio == 1.5 else 1e-5)  # we centre the triangles
    stripes = np.broadcast_to((np.arange(64) % 2)[:, None, None] * 100.0, (64, 4, 4)).astype(np.float32)
    array, _ = to_grid(Volume(stripes[None], np.eye(4)), size=(20, 4, 4), spacing=(3.0, 1, 1))
    assert np.abs(array - 50).max() < 12  # unfiltered sampling would see 0 and 100


def test_labels_stay_labels_and_follow_the_image():
    rng = np.random.default_rng(2)
    mask = (rng.random((20, 20, 20)) > 0.5).astype(np.uint8) * 3
    mask[5:15, 5:15, 5:15] = 7
    volume = Volume(mask[None].astype(np.float32), np.diag([-1.0, 1.0, 1.0, 1.0]), mask)
    array, labels = to_grid(volume, size=(30, 30, 30), spacing=(0.6, 0.6, 0.6))
    assert set(np.unique(labels)) <= {0, 3, 7}
    assert labels.dtype == np.uint8
    assert np.abs(array - labels)[10:20, 10:20, 10:20].max() < 1e-5  # inside the cube
    steps = np.broadcast_to(np.arange(30)[:, None, None], (30, 2, 2))
    for spacing in (0.7, 1.7):  # a ramp's label is the whole number nearest to the image's value
        array, labels = to_grid(Volume(steps[None].astype(np.float32), np.eye(4), steps), size=(12, 2, 2), spacing=(spacing, 1, 1))
        assert np.abs(array - labels).max() <= 0.5 + 1e-5
    kept, same = to_grid(volume, size=(20, 20, 20), spacing=(1, 1, 1))
    np.testing.assert_array_equal(kept, same)


def test_an_axis_without_a_size_is_not_resampled():
    volume = oriented((10, 10, 6), (1.0, 1.0, 7.0), "RAS")
    array, _, affine = placed(volume, size=(5, 5, None), spacing=(2.0, 2.0, 3.0))
    assert array.shape == (5, 5, 6)
    assert Geometry(array.shape, affine).spacing == pytest.approx((2.0, 2.0, 7.0))


def test_spacing_is_told_along_the_turned_axes():
    assert geometry_in(oriented((4, 5, 6), (1.0, 2.0, 3.0), "SRA"), "RAS").spacing == pytest.approx((2.0, 3.0, 1.0))


@settings(max_examples=50, deadline=None)
@given(st.floats(-3000, 3000), st.floats(1, 1e6), st.integers(0, 2**31))
def test_scaling_there_and_back_is_the_identity_within_half_a_step(low, width, seed):
    scale = (low, low + width)
    stored = np.rint(np.random.default_rng(seed).uniform(*scale, 500)).clip(*scale).astype(np.float32)
    back = to_stored(to_model(stored, scale), scale)
    assert np.abs(back - stored).max() <= max(width * 2**-23, np.abs(stored).max() * 2**-23)
    if width < 2**20:
        inner = stored[(np.rint(stored) == stored) & (stored >= low) & (stored <= low + width)]
        np.testing.assert_array_equal(to_stored(to_model(inner, scale), scale, integer=True), inner)


def test_a_float16_cache_costs_at_most_half_of_its_own_step():
    scale = (-1000.0, 1000.0)
    stored = np.linspace(*scale, 5001, dtype=np.float32)
    cached = to_model(stored, scale).astype(np.float16).astype(np.float32)
    assert np.abs(to_stored(cached, scale) - stored).max() <= 1000 * 2**-12 + 1e-3  # 11 bits in [0.5, 1)


def test_the_scale_is_robust_to_a_few_wild_voxels_and_a_window_is_taken_as_it_is():
    array = np.random.default_rng(0).uniform(0, 100, (20, 20, 20)).astype(np.float32)
    calm = scale_of(array)
    array[0, 0, :20] = 1e6
    assert scale_of(array) == pytest.approx(calm, abs=1.0)
    assert scale_of(array, window=(-160, 240)) == (-160.0, 240.0)
    model = to_model(array, (0.0, 100.0))
    assert model.min() >= -1
    assert model.max() == 1
    assert model.dtype == np.float32


def test_a_mask_like_image_is_scaled_by_its_range():
    array = np.zeros((20, 20, 20), np.float32)
    array[3, 3, 3] = 9
    assert scale_of(array) == (0.0, 9.0)


@pytest.mark.parametrize("value", [0.0, -1024.0, 1.7e6])
@pytest.mark.parametrize("window", [None, (-100, 100)])
def test_constant_images_are_refused(value, window):
    with pytest.raises(UnreadableImage) as refused:
        scale_of(np.full((4, 4, 4), value, np.float32), window=window)
    assert refused.value.code == "constant"


def test_an_image_outside_the_window_or_with_nan_is_refused():
    array = np.linspace(500, 900, 64, dtype=np.float32).reshape(4, 4, 4)
    with pytest.raises(UnreadableImage) as refused:
        scale_of(array, window=(-100, 100))
    assert refused.value.code == "constant"
    array[0, 0, 0] = np.nan
    with pytest.raises(UnreadableImage) as refused:
        scale_of(array)
    assert refused.value.code == "not-finite"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_range_and_carry_their_labels(axis):
    pixels = np.random.default_rng(0).uniform(-1, 1, (10, 12, 14)).astype(np.float32)
    mask = (pixels > 0).astype(np.uint8)
    kept = slices(pixels, mask, axis=axis, every=3, span=(0.25, 0.75))
    count = pixels.shape[axis]
    assert [index for index, _, _ in kept] == [k for k in range(count) if count * 0.25 - 1 < k < count * 0.75][::3]
    for index, image, labels in kept:
        np.testing.assert_array_equal(image, np.moveaxis(pixels, axis, 0)[index])
        np.testing.assert_array_equal(labels, image > 0)


def test_empty_slices_are_left_out_and_a_volume_of_them_is_refused():
    pixels = np.full((8, 8, 6), -0.97, np.float32)  # noise just above the bound
    pixels[:, :4, 2] = 0.5
    assert [index for index, _, _ in slices(pixels, foreground=0.4)] == [2]
    with pytest.raises(UnreadableImage) as refused:
        slices(pixels, foreground=0.6)
    assert refused.value.code == "no-slice"


def test_the_canonical_grid_is_centred_and_has_the_asked_axes():
    for orientation in ORIENTATIONS:
        affine = np.array(canonical_affine((5, 6, 7), (1.0, 2.0, 3.0), orientation))
        geometry = Geometry((5, 6, 7), affine)
        assert (geometry.orientation, geometry.spacing) == (orientation, pytest.approx((1.0, 2.0, 3.0)))
        np.testing.assert_allclose(affine @ [2, 2.5, 3, 1], [0, 0, 0, 1])
    sagittal = np.array(canonical_affine((6, 7), (2.0, 3.0, 1.5), "RAS", axis=0))
    np.testing.assert_allclose(sagittal[:3, :3], [[0, 0, 1.5], [2, 0, 0], [0, 3, 0]])
    np.testing.assert_allclose(canonical_affine((4, 4), (2.0, 2.0))[2], [0, 0, 1, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda v: to_grid(v, size=(4, 4), spacing=(1, 1, 1)),
        lambda v: to_grid(v, size=(4, 4, 4), spacing=(1, 1, 1), orientation="RAX"),
        lambda v: to_grid(v, size=(4, 4, 4), spacing=(1, 1, 1), orientation="RLS"),
        lambda v: scale_of(v.array, window=(5, 5)),
        lambda v: slices(v.array[0], axis=3),
        lambda v: slices(v.array[0], every=0),
        lambda v: slices(v.array[0], span=(0.6, 0.4)),
    ],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(SettingsError, match=r"data\."):
        wrong(oriented((4, 4, 4), (1, 1, 1), "RAS"))


def test_a_volume_of_64_voxels_a_side_takes_milliseconds():
    volume = Volume(np.random.default_rng(0).normal(size=(1, 64, 64, 64)).astype(np.float32), np.diag([-1.0, -1.0, 1.2, 1.0]))
    seconds = []
    for _ in range(7):
        start = time.process_time()
        array, _ = to_grid(volume, size=(48, 48, 48), spacing=(1.5, 1.5, 1.5))
        to_model(array, scale_of(array))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05, seconds  # measured: 5 ms
