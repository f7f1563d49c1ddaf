"""Images compared window by window: against the slow way, and against copies that no single move undoes."""

import numpy as np
import pytest

from medsynth.audit.nearest import VIEWS, References, nearest
from medsynth.audit.pieces import COARSE, Pieces, windows
from medsynth.audit.plants import kinds
from medsynth.rng import generator_for
from tests.make_evidence import images_of

SHAPES = [(24, 24), (14, 16, 14)]
PIECES, PIECE = VIEWS.index("pieces"), VIEWS.index("piece")


def pieces_of(images: np.ndarray) -> Pieces:
    return Pieces(images, np.arange(len(images)))


@pytest.mark.parametrize("space", [(24, 24), (9, 30), (16, 24, 16), (3, 3), (2, 40)], ids=str)
def test_windows_lie_inside_the_grid_and_every_voxel_in_one(space: tuple[int, ...]) -> None:
    seen = np.zeros(space, int)
    for window in windows(space):
        assert all(0 <= part.start < part.stop <= size for part, size in zip(window, space, strict=True))
        seen[window] += 1
    assert seen.min() >= 1


def test_a_window_compares_as_plain_correlations_step_by_step() -> None:
    """Each image's window, moved by hand, on the ways of the window: the best correlation of all steps, on the scale of strangers."""
    images = images_of((20, 24), [f"train {i}" for i in range(30)])
    queries = images_of((20, 24), ["nobody 0", "nobody 1"])
    pieces = pieces_of(images)
    window = pieces.windows[len(pieces.windows) // 2]
    (rows, columns), ways = window.place, window.weights

    def coordinates(image: np.ndarray, down: int, right: int) -> np.ndarray:
        image = (image - image.mean()) / image.std()
        cut = image[rows.start + down : rows.stop + down, columns.start + right : columns.stop + right].ravel()
        return (cut - cut.mean() - window.mean) @ ways

    def slow(query: np.ndarray, image: np.ndarray, count: int) -> float:
        other = coordinates(image, 0, 0)[:count]
        best = -1.0
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                own = coordinates(query, down, right)[:count]
                best = max(best, float(own @ other / np.linalg.norm(own) / np.linalg.norm(other)))
        return float(np.arctanh(best))

    def expected(count: int, middle: float, spread: float) -> np.ndarray:
        return np.array([[(slow(query, image, count) - middle) / spread for image in images] for query in queries])

    standard = [(part - part.mean((1, 2), keepdims=True)) / part.std((1, 2), keepdims=True) for part in (queries, images)]
    for found, count, scale in zip(window.compare(*standard, pieces.steps), (COARSE, ways.shape[1]), window.scales, strict=True):
        assert found == pytest.approx(expected(count, *scale), abs=2e-3)


def test_strangers_have_the_scale_of_one(real: np.ndarray) -> None:
    mean, best = pieces_of(real).compare(real)
    apart = ~np.eye(len(real), dtype=bool)
    assert mean[apart].mean() == pytest.approx(0, abs=1e-3)
    assert (np.diag(mean) > mean[apart].max() + 3).all()
    assert (np.diag(best) > best[apart].max()).all()


@pytest.fixture(params=SHAPES, ids=str)
def real(request: pytest.FixtureRequest) -> np.ndarray:
    return images_of(request.param, [f"train {i}" for i in range(40)])


@pytest.mark.parametrize(("kind", "view"), [("small_turn", PIECES), ("warp", PIECES), ("mixture", PIECES), ("part", PIECE)])
def test_what_no_move_of_the_whole_undoes_is_found_piece_by_piece(real: np.ndarray, kind: str, view: int) -> None:
    plant, others = kinds(real.shape[1:])[kind], images_of(real.shape[1:], [f"nobody {i}" for i in range(10)])
    copies = np.stack([plant(real[i], others[i], generator_for(0, kind, i)) for i in range(10)]).astype(np.float32)
    references = References(images=real, groups=np.zeros(len(real), int), subjects=np.arange(len(real)))
    found, strangers = nearest(copies, references), nearest(others, references)
    assert (found.row[view, :, 0] == np.arange(10)).mean() >= 0.9
    assert np.median(found.score[view]) > strangers.score[view].max()


def test_a_window_that_shows_nothing_is_near_nobody() -> None:
    """Air, cut to one value in some, is no likeness: only what has structure counts."""
    images = images_of((24, 24), [f"train {i}" for i in range(20)])
    images[:5, :12] = -1.0
    top = [each for each in pieces_of(images).windows if each.place[0].stop <= 12]
    window = next(each for each in top if min(part.start for part in each.place) >= 6)
    described = window._described((images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True))
    assert (described[0][:5] == 0).all()
    assert (np.linalg.norm(described[0][5:], axis=1) > 0.99).all()


def test_a_score_depends_on_its_own_query_alone(real: np.ndarray) -> None:
    pieces = pieces_of(real)
    together = pieces.compare(real[:3] + 0.1)
    alone = [pieces.compare(real[i : i + 1] + 0.1) for i in range(3)]
    for view in (0, 1):
        assert together[view] == pytest.approx(np.concatenate([each[view] for each in alone]), abs=1e-4)


def test_one_reference_alone_has_no_scale_and_no_error() -> None:
    mean, best = pieces_of(images_of((16, 16), ["one"])).compare(images_of((16, 16), ["two"]))
    assert np.isfinite(mean).all()
    assert np.isfinite(best).all()
