"""Pictures with text and without, whose truth is known."""

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVu Sans", "DejaVu Sans Mono")
SAID = ("DOE^JANE 1970", "ID: 4711-0815", "12/03/1968 10:22", "Dr. H. Miller", "St. Mary Hospital", "SMITH, JOHN M")


def phantom(size: int, seed: int, rim: bool = True) -> np.ndarray:
    """An anatomy-like picture (uint8): smooth ellipses, a bright rim as of a skull, noise."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.zeros((size, size))
    for _ in range(12):
        cy, cx, turn = *chance.uniform(-0.25, 0.25, 2), chance.uniform(0, 3)
        a, b = chance.uniform(0.03, 0.3, 2)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        image += chance.uniform(10, 60) / (1 + np.exp(np.clip(((u / a) ** 2 + (v / b) ** 2 - 1) * 12, -50, 50)))
    if rim:
        image += 90 * np.exp(-(((np.hypot(x / 0.42, y / 0.46) - 1) / 0.03) ** 2))
    return np.clip(image + chance.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def burn(image: np.ndarray, text: str, *, size: int, contrast: int, place: tuple[int, int], font: str = FONTS[0]) -> np.ndarray:
    """``text`` of ``size`` pixels, brighter than the picture by ``contrast`` (darker if negative), its left upper corner at ``place``."""
    layer = Image.new("L", image.shape[::-1], 0)
    ImageDraw.Draw(layer).text(place, text, fill=255, font=ImageFont.truetype(font_manager.findfont(font), size))
    return np.clip(image + np.asarray(layer) / 255 * contrast, 0, 255).astype(np.uint8)
