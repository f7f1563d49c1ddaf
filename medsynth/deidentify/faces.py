"""Whether an image shows a face: a head in three dimensions does, since its surface can be rendered and recognised.

Removal is not offered: the maintained methods need programs or weights beside them, and after the popular ones 28 to 38 % of faces were
still recognised (Schwarz et al. 2021, NeuroImage 231:117845). So such images are refused, or kept by setting and marked as recognisable.
"""

import re

from pydicom.dataset import Dataset

VOLUMES = frozenset({"CT", "MR", "PT"})
_HEAD = re.compile(
    r"\b(head|brain|skull|face|facial|cranium|cranial|cerebr\w*|neuro\w*|orbits?|sinus(es)?|maxillofacial|headneck|iac|pituitary|hypophysis"
    r"|whole ?body|head and neck|headandneck|jaws?|ears?|eyes?|nose|maxilla|tmj|intracranial|cerebellum)\b"
)
# Body parts that show no head, and the words beside them
_ELSEWHERE = frozenset(
    [
        *("abdomen", "abdomenpelvis", "chest", "chestabdomen", "chestabdpelv", "thorax", "pelvis", "breast", "heart", "lung", "lungs"),
        *("liver", "kidney", "pancreas", "spleen", "prostate", "uterus", "bladder", "colon", "rectum", "stomach", "aorta"),
        *("hip", "femur", "thigh", "leg", "knee", "tibia", "fibula", "calf", "ankle", "foot", "toe", "tspine", "lspine", "sacrum"),
        *("shoulder", "humerus", "arm", "elbow", "forearm", "wrist", "hand", "finger", "extremity", "lumbar", "thoracic", "spine"),
        *("and", "left", "right", "lower", "upper", "joint"),
    ]
)
_CODES = frozenset({"69536005", "12738006", "89546000", "89545001", "774007", "T-D1100", "T-A0100", "T-11100", "T-D1200", "T-D1000"})
_TOLD = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription")


def is_head(data: Dataset) -> bool | None:
    """True by the anatomic region and the descriptions, False by regions that show none; else None. Radiographs show no face."""
    if str(data.get("Modality", "")) not in VOLUMES:
        return False
    regions = [*(data.get("AnatomicRegionSequence") or [])]
    regions += [
        item
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in data.get(keyword) or []
        for anatomy in group.get("FrameAnatomySequence") or []
        for item in anatomy.get("AnatomicRegionSequence") or []
    ]
    told = " ".join(str(data.get(keyword) or "") for keyword in _TOLD).casefold()
    told += " " + " ".join(str(item.get("CodeMeaning") or "") for item in regions).casefold()
    if _HEAD.search(re.sub(r"[^a-z]+", " ", told)) or any(str(item.get("CodeValue")) in _CODES for item in regions):
        return True
    parts = [str(part or "") for part in (data.get("BodyPartExamined"), *(item.get("CodeMeaning") for item in regions))]
    shown = re.findall(r"[^\W_]+", " ".join(parts).casefold())
    return False if shown and _ELSEWHERE.issuperset(shown) else None
