"""Whether an image shows a face: a head in three dimensions does, since its surface can be rendered and recognised.

Removal is not offered: the maintained methods need programs or weights beside them, and after the popular ones 28 to 38 % of faces were
still recognised (Schwarz et al. 2021, NeuroImage 231:117845). So such images are refused, or kept by setting and marked as recognisable.
"""

import re

from pydicom.dataset import Dataset

VOLUMES = frozenset({"CT", "MR", "PT"})
_HEAD = re.compile(
    r"\b(head|brain|skull|face|facial|cranium|cranial|cerebr\w*|neuro\w*|orbits?|sinus(es)?|maxillofacial|headneck|iac|pituitary|hypophysis)\b"
)
_CODES = frozenset({"69536005", "12738006", "89546000", "89545001", "774007", "T-D1100", "T-A0100", "T-11100", "T-D1200", "T-D1000"})
_TOLD = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription")


def is_head(data: Dataset) -> bool | None:
    """True and False by the anatomic region and the descriptions; None where nothing tells. Radiographs show no face."""
    if str(data.get("Modality", "")) not in VOLUMES:
        return False
    regions = [item for keyword in ("AnatomicRegionSequence",) for item in data.get(keyword) or []]
    regions += [
        item
        for group in data.get("SharedFunctionalGroupsSequence") or []
        for anatomy in group.get("FrameAnatomySequence") or []
        for item in anatomy.get("AnatomicRegionSequence") or []
    ]
    told = " ".join(str(data.get(keyword) or "") for keyword in _TOLD).casefold()
    told += " " + " ".join(str(item.get("CodeMeaning") or "") for item in regions).casefold()
    if _HEAD.search(re.sub(r"[^a-z]+", " ", told)) or any(str(item.get("CodeValue")) in _CODES for item in regions):
        return True
    return False if data.get("BodyPartExamined") or regions else None
