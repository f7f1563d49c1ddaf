"""Pictures keep directions, spacing and one window."""

import io

import numpy as np
import pytest
from PIL import Image

from medsynth.stages import figures


def corner(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    image = np.full(shape, -1.0, np.float32)
    image[index] = 1.0
    return image


def test_the_patients_right_and_front_are_shown_at_the_upper_left():
    # RAS+: the last index of x is the patient's right, the last of y the front
    grey = figures.picture(corner((5, 4), (4, 3)), (1.0, 1.0))
    assert grey.shape == (4, 5)
    assert np.argwhere(grey == 255).tolist() == [[0, 0]]


def test_a_volumes_planes_are_axial_coronal_sagittal_with_the_head_on_top():
    volume = np.full((6, 4, 2), -1.0, np.float32)
    volume[5, 2, 1] = 1.0  # right, middle row of y, upper slice (the middle one of two)
    grey = figures.picture(volume, (1.0, 1.0, 1.0))
    axial, coronal = grey[:, :6], grey[:, 8:14]
    assert grey.shape == (4, 6 + 2 + 6 + 2 + 4)
    assert np.argwhere(axial == 255).tolist() == [[1, 0]]
    assert np.argwhere(coronal == 255).tolist() == [[1, 0]]  # padded by one row above: the slice on top


def test_pixels_are_square_in_millimetres():
    assert figures.picture(np.zeros((10, 10), np.float32), (1.0, 3.0)).shape == (30, 10)


def test_no_side_is_longer_than_asked():
    assert max(figures.picture(np.zeros((1000, 500), np.float32), (1.0, 1.0), longest=256).shape) == 256


@pytest.mark.parametrize(("value", "level"), [(-1, 0), (1, 255), (-7, 0), (7, 255), (0, 128)])
def test_the_window_is_the_same_for_all_images(value, level):
    assert (figures.picture(np.full((3, 3), value, np.float32), (1.0, 1.0)) == level).all()


def test_a_png_returns_the_grey_levels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(figures.png(grey)))), grey)


def test_figures_carry_no_clock_and_no_version():
    panels = [("loss", "step", "loss", {"a": ([1, 2, 3], [3.0, 2.0, 1.0]), "b": ([1], [2.0])})]
    first = figures.curves(panels, log=True)
    assert first == figures.curves(panels, log=True)
    assert not Image.open(io.BytesIO(first)).text
