"""The search by outlines: another kind of detector, for cohorts whose copies were rejected."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.audit.confirmation import FAMILY, Confirmation, Outlines, _line
from medsynth.audit.finding import Evidence
from medsynth.audit.level import LEVELS
from medsynth.audit.plants import kinds
from medsynth.rng import generator_for
from tests.make_evidence import images_of, make_evidence, shuffled

FLAT, SOLID = (20, 20), (12, 14, 12)
QUICK = replace(LEVELS["demo"], plants=4)


def made(folder: Path, **fields) -> Evidence:
    return make_evidence(folder, **({"level": QUICK} | fields))


@pytest.mark.parametrize("kind", ["exact", "noise", "blur", "gain", "gamma", "flip_y", "quarter_turn", "shift"])
def test_one_copy_is_named_and_nobody_else(tmp_path: Path, kind: str) -> None:
    image = images_of(FLAT, ["train 5"])[0]
    copy = kinds(FLAT)[kind](image, image, generator_for(1, kind)).astype(np.float32)
    finding = Confirmation()(made(tmp_path, planted=copy[None]))
    assert (finding.verdict, finding.details["named"]) == ("fail", ["synthetic-000000"])


def test_a_mirrored_copy_of_a_volume_is_named(tmp_path: Path) -> None:
    copy = images_of(SOLID, ["train 5"])[:, :, ::-1]
    finding = Confirmation(voxels=900)(made(tmp_path, shape=SOLID, n_train=30, n_holdout=20, n_synthetic=30, planted=copy))
    assert finding.details["named"] == ["synthetic-000000"]


def test_it_is_required_of_filtered_cohorts_alone(tmp_path: Path) -> None:
    evidence = made(tmp_path)
    header = replace(evidence.synthetic.header, rejected={"synthetic-000001": "memorization"})
    filtered = replace(evidence, synthetic=replace(evidence.synthetic, header=header))
    assert [Confirmation()(each).required for each in (evidence, filtered)] == [False, True]


def test_the_order_of_cases_does_not_matter(tmp_path: Path) -> None:
    evidence = made(tmp_path, planted=images_of(FLAT, ["train 9"]))
    other = replace(evidence, **{name: shuffled(getattr(evidence, name), 3) for name in ("train", "holdout", "synthetic")})
    assert Confirmation()(other).as_json() == Confirmation()(evidence).as_json()


def test_few_cases_confirm_nothing(tmp_path: Path) -> None:
    assert Confirmation()(made(tmp_path, n_synthetic=5)).verdict == "inconclusive"
    assert Confirmation()(made(tmp_path / "few", n_holdout=5)).verdict == "inconclusive"


def test_outlines_are_compared_in_every_position_as_a_slow_search_would() -> None:
    images = images_of((10, 12), ["a", "b", "c"])
    turned = np.roll(images[:, ::-1], 1, axis=2)
    found = Outlines(turned).nearest(images)
    apart = Outlines(images_of((10, 12), ["d"])).nearest(images)
    assert found.min() > 2 > 1.5 > apart.max()


def test_the_line_is_where_gumbels_law_puts_it() -> None:
    """Best of m references, in n cases: the share of cohorts with any case beyond the line is the family's rate."""
    generator = generator_for("line")
    crossed = 0
    for _ in range(400):
        scores = generator.gumbel(2.0, 0.5, 400)
        crossed += (generator.gumbel(2.0 + 0.5 * math.log(3), 0.5, 100) > _line(scores, 100, 3.0)).any()
    assert 0.3 * FAMILY < crossed / 400 < 3 * FAMILY
