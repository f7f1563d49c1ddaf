"""The search for the nearest real case: what it forgives, and that both stages agree with the slow way."""

import numpy as np
import pytest
from scipy import ndimage

from medsynth.audit.nearest import NOBODY, SMOOTH, VIEWS, Anatomy, Matches, Modes, References, nearest, pooled, zoomed
from medsynth.audit.plants import kinds
from medsynth.audit.rates import NEAR_ONE
from medsynth.rng import generator_for
from tests.make_evidence import images_of

PIXELS, RANKS, RESIDUAL, MODES, PIECES, PIECE = range(len(VIEWS))
SHAPES = [(24, 24), (20, 28), (14, 16, 14)]


def one_each(images: np.ndarray, groups: np.ndarray | None = None) -> References:
    """Every case a subject of its own, in one group unless said otherwise."""
    groups = np.zeros(len(images), int) if groups is None else groups
    return References(images=images, groups=groups, subjects=np.arange(len(images)))


def found(queries: np.ndarray, images: np.ndarray, **options) -> Matches:
    return nearest(queries, one_each(images), **options)


@pytest.fixture(params=SHAPES, ids=str)
def real(request: pytest.FixtureRequest) -> np.ndarray:
    return images_of(request.param, [f"train {i}" for i in range(24)])


def test_an_exact_copy_is_as_near_as_can_be_in_every_view(real: np.ndarray) -> None:
    match = found(real[[3, 7]], real)
    assert np.tanh(match.score[:PIECES]) == pytest.approx(NEAR_ONE)
    assert (match.score[PIECES:] > found(images_of(real.shape[1:], ["nobody"]), real).score[PIECES:] + 3).all()
    assert match.row[:, :, 0].tolist() == [[3, 7]] * len(VIEWS)


def test_every_kind_of_copy_names_its_source_in_one_view(real: np.ndarray) -> None:
    for name, plant in kinds(real.shape[1:]).items():
        copies = np.stack([plant(real[i], real[i], generator_for(0, name, i)) for i in range(6)]).astype(np.float32)
        assert (found(copies, real).row[:, :, 0] == np.arange(6)).any(0).all(), name


def test_a_mirrored_copy_is_exact_to_the_views_that_turn_and_strange_to_the_others(real: np.ndarray) -> None:
    correlation = np.tanh(found(np.flip(real[:4], 1), real).score[:, :, 0])
    assert (correlation[[RESIDUAL, MODES]] > 0.999).all()
    assert (correlation[[PIXELS, RANKS]] < 0.99).all()


def test_noise_counts_for_the_pixels_with_what_light_smoothing_leaves_of_it() -> None:
    """White noise keeps 1 / (4 pi sigma^2) of its variance in a plane behind a Gaussian of sigma."""
    smooth = ndimage.gaussian_filter(generator_for(0, "smooth").standard_normal((1, 96, 96)), (0, 6, 6)).astype(np.float32)
    noisy = smooth + smooth.std() * generator_for(0, "noise").standard_normal(smooth.shape, dtype=np.float32)
    expected = 1 / np.sqrt(1 + 1 / (4 * np.pi * SMOOTH**2))
    assert np.tanh(found(noisy, np.concatenate([smooth, -smooth])).score[PIXELS, 0, 0]) == pytest.approx(expected, abs=0.01)


def test_modes_forgive_a_voxel_along_every_axis_at_once(real: np.ndarray) -> None:
    anatomy = Anatomy(one_each(real))
    modes = Modes(anatomy, np.ones(real.shape[1:], np.float32))
    moved = np.roll(anatomy.references, (1, -1, 1)[: real.ndim - 1], range(1, real.ndim))
    assert np.diagonal(modes.alike(moved)) == pytest.approx(1, abs=1e-3)


def test_gamma_is_nothing_to_the_ranks(real: np.ndarray) -> None:
    other = images_of(real.shape[1:], ["nobody 0", "nobody 1"])
    curved = np.exp(other)
    assert found(curved, real).score[RANKS] == pytest.approx(found(other, real).score[RANKS], abs=1e-3)


def test_gain_and_offset_change_no_score(real: np.ndarray) -> None:
    other = images_of(real.shape[1:], ["nobody 0", "nobody 1"])
    assert found(3 * other + 1, real).score == pytest.approx(found(other, real).score, abs=1e-3)


def test_each_group_has_its_own_nearest_and_a_subject_may_be_left_out(real: np.ndarray) -> None:
    match = nearest(real[[4]], one_each(real, np.arange(len(real)) % 2), own=np.array([4]))
    assert (match.row[:, 0, 0] % 2 == 0).all()
    assert (match.row[:, 0, 1] % 2 == 1).all()
    assert (match.row[:, 0, 0] != 4).all()
    assert (np.tanh(match.score[:PIECES]) < 0.999).all()


def test_a_subject_left_out_is_left_out_with_all_its_cases(real: np.ndarray) -> None:
    images = np.concatenate([real, real[4:5]])
    known = References(images=images, groups=np.zeros(len(images), int), subjects=np.array([*range(len(real)), 4]))
    assert np.isin(nearest(real[[4]], known).row, (4, len(real))).all()
    assert not np.isin(nearest(real[[4]], known, own=np.array([4])).row, (4, len(real))).any()


def test_where_nobody_else_is_there_is_no_neighbour(real: np.ndarray) -> None:
    known = References(images=real, groups=np.zeros(len(real), int), subjects=np.zeros(len(real), int))
    match = nearest(real[:1], known, own=np.array([0]))
    assert (match.row == -1).all()
    assert (match.score == NOBODY).all()


def test_few_candidates_find_what_all_would(real: np.ndarray) -> None:
    others = images_of(real.shape[1:], [f"nobody {i}" for i in range(8)])
    few, every = (np.tanh(found(others, real, candidates=count).score[RESIDUAL]) for count in (8, len(real)))
    assert few == pytest.approx(every, abs=0.1)
    assert (few <= every + 1e-6).all()


def test_modes_have_equal_weight_and_no_correlation() -> None:
    """Projected, the subjects that made the basis have a diagonal covariance: falling by the floor alone."""
    anatomy = Anatomy(one_each(images_of((16, 18), [f"train {i}" for i in range(60)])))
    modes = Modes(anatomy, np.ones((16, 18), np.float32))
    flat = (modes._flat(anatomy.references) - modes.mean) @ modes.weights
    covariance = flat.T @ flat / len(flat)
    diagonal = np.diag(covariance)
    assert covariance == pytest.approx(np.diag(diagonal), abs=1e-3)
    assert (diagonal > 0.5).all()
    assert (diagonal < 1).all()
    assert len(diagonal) == 20


def test_the_moves_at_once_are_the_moves_one_by_one() -> None:
    """The cross-correlation with its norm by FFT is the plain correlation of a moved image less the mean, away from the border."""
    real = images_of((16, 18), [f"train {i}" for i in range(10)])
    anatomy = Anatomy(one_each(real))
    valid = np.ones(real.shape[1:], np.float32)
    query = images_of((16, 18), ["nobody"])
    exact = anatomy._exact(query, np.zeros(10, int), np.arange(10), np.zeros(10, int))
    own, middle = anatomy._fine(anatomy._laid(query, valid), valid)[0], anatomy._fine(anatomy.mean[None], valid)[0]
    known = anatomy._residual(anatomy.references, valid)
    reach = anatomy.wobble
    moves = [(i, j) for i in range(-reach[0], reach[0] + 1) for j in range(-reach[1], reach[1] + 1)]
    inside = (slice(reach[0], -reach[0]), slice(reach[1], -reach[1]))
    residuals = [(np.roll(own, move, (0, 1)) - middle)[inside] for move in moves]
    slow = np.max([[(r * k[inside]).sum() / np.linalg.norm(r) / np.linalg.norm(k[inside]) for k in known] for r in residuals], axis=0)
    assert exact == pytest.approx(slow, abs=1e-4)


def test_a_copy_moved_by_a_voxel_along_every_axis_is_found_in_volumes() -> None:
    """What was moved in at its border is not compared: the repeated border alone would cost a fifth of a small volume."""
    space = (16, 24, 16)
    real = np.roll(images_of(space, [f"train {i}" for i in range(24)]), (8, 12, 8), (1, 2, 3))  # with something at the border
    moved = np.stack([np.pad(image, 1, mode="edge")[:-2, :-2, :-2] for image in real[:8]])
    matches = found(moved, real)
    assert (matches.row[RESIDUAL, :, 0] == np.arange(8)).all()
    assert (np.tanh(matches.score[RESIDUAL, :, 0]) > 0.99).all()


def test_magnifying_a_ramp_gives_a_shallower_ramp() -> None:
    ramp = np.broadcast_to(np.arange(21, dtype=np.float32) - 10, (1, 5, 21))
    bigger, everywhere = zoomed(ramp, 2.0)
    assert everywhere.all()
    assert bigger[0, 2] == pytest.approx((np.arange(21) - 10) / 2)
    smaller, valid = zoomed(ramp, 0.5)
    assert valid[2].sum() == 11  # half of the axis comes from inside
    assert smaller[0, 2][valid[2] > 0] == pytest.approx((np.arange(5, 16) - 10) * 2)


def test_pooling_averages_blocks_and_drops_the_rest() -> None:
    images = np.arange(2 * 7 * 4, dtype=np.float32).reshape(2, 7, 4)
    assert pooled(images, (2, 2)) == pytest.approx(images[:, :6].reshape(2, 3, 2, 2, 2).mean((2, 4)))


def test_a_view_in_which_nothing_varies_tells_nothing_and_stops_nothing() -> None:
    references = References(images=np.zeros((3, 4, 4), np.float32), groups=np.array([0, 0, 1]), subjects=np.array([0, 0, 1]))
    score, row = references.by_subject(np.array([[np.nan, 0.4, np.nan], [np.nan, np.nan, 0.2]]), np.array([-1, 1]))
    np.testing.assert_array_equal(score, [[0.4, 0.0], [0.0, -np.inf]])
    np.testing.assert_array_equal(row, [[1, 2], [0, 2]])
