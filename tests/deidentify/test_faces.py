"""Whether a head is shown: said where attributes say so, denied for body parts without one, left open else."""

import pytest
from pydicom.dataset import Dataset

from medsynth.deidentify.faces import is_head


def image(**values: object) -> Dataset:
    data = Dataset()
    for keyword, value in ({"Modality": "MR"} | values).items():
        setattr(data, keyword, value)
    return data


def frames(meaning: str) -> list[Dataset]:
    return [image(FrameAnatomySequence=[image(AnatomicRegionSequence=[image(CodeMeaning=meaning)])])]


@pytest.mark.parametrize(
    "part", ["HEAD", "WHOLEBODY", "HEADANDNECK", "JAW", "EAR", "EYE", "NOSE", "MAXILLA", "TMJ", "INTRACRANIAL", "CEREBELLUM"]
)
def test_heads(part):
    assert is_head(image(BodyPartExamined=part))
    assert is_head(image(PerFrameFunctionalGroupsSequence=frames(part)))


@pytest.mark.parametrize("part", ["CHEST", "ABDOMEN", "KNEE", "TSPINE"])
def test_body_parts_without_a_head(part):
    assert is_head(image(BodyPartExamined=part)) is False
    assert is_head(image(SharedFunctionalGroupsSequence=frames(part))) is False


@pytest.mark.parametrize("part", ["NECK", "CSPINE", "CHEST NECK", "UNKNOWN", ""])
def test_what_may_show_a_head_is_not_denied(part):
    assert is_head(image(BodyPartExamined=part)) is None
    assert is_head(image(BodyPartExamined="CHEST", PerFrameFunctionalGroupsSequence=frames("Neck"))) is None
