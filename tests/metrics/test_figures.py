import numpy as np

from medsynth.metrics import figures
from medsynth.metrics.score import Sample


def cubes(sides: list[int]) -> Sample:
    """Masks with one cube a case."""
    masks = np.zeros((len(sides), 20, 20, 20), np.uint8)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side, :side] = 1
    return Sample(
        images=np.zeros((len(sides), 0)), features={}, subjects=[str(i) for i in range(len(sides))], spacing=(2, 2, 2), masks=masks
    )


def test_violins_of_structures_show_no_single_person(tmp_path):
    usual = [8, 9, 10, 11, 12] * 6
    drawn = []
    for name, sides in (("usual", usual), ("one giant", [*usual[:-1], 20]), ("all larger", [side + 1 for side in usual])):
        figures.structures({"train": cubes(sides), "holdout": cubes(usual), "synthetic": cubes(usual)}, tmp_path / f"{name}.png")
        drawn.append((tmp_path / f"{name}.png").read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
