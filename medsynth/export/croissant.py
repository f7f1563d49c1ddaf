"""The release as a machine finds it: Croissant 1.0 JSON-LD (Akhtar et al. 2024), with the properties of its vocabulary for responsible AI.

Croissant has no property for "synthetic" (1.0), so the kind of collection, the description and the keywords say it. Of dates it knows none:
nothing here reads a clock.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsynth.cohort import Cohort, sha256_of

PLAIN = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
    "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in PLAIN},
}
SETS = {
    "nifti": [("images", "nifti/images/*.nii.gz", "application/gzip"), ("masks", "nifti/masks/*.nii.gz", "application/gzip")],
    "dicom": [("dicom", "dicom/*/image/*", "application/dicom")],
    "bids": [("bids", "bids/**/*.nii.gz", "application/gzip")],
}


def croissant(
    cohort: Cohort, folder: Path, *, name: str, source: Mapping[str, str], audit: Mapping[str, Any], formats: Sequence[str], version: str
) -> dict[str, Any]:
    """The description of the release in ``folder``, whose ``cases.tsv`` is written. ``version`` is the software's."""
    header = cohort.header
    noun = "volumes" if header.dims == 3 else "images"
    verdict = (
        f"Audit verdict: {audit['verdict']} at the level “{audit['level']['name']}”. What that level claims: {audit['level']['claim']}"
    )
    spite = " It was released in spite of that verdict." if audit.get("released_in_spite_of") else ""
    masked = any(case.mask for case in cohort)
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": f"{len(cohort)} synthetic {header.modality} {noun} of a diffusion model. No image was acquired from a person.",
        "keywords": ["synthetic data", "medical imaging", header.modality],
        "version": f"1.0.0+{cohort.digest[:12]}",
        "license": source.get("licence") or "not stated",
        "creator": {"@type": "sc:Organization", "name": "the institution whose key signed the release"},
        "citeAs": f"{name}: {len(cohort)} synthetic {header.modality} {noun}, medsynth {version}, manifest {cohort.digest}",
        "rai:dataCollection": "Drawn from a diffusion model, each case from its own seed; datasheet.md says how.",
        "rai:dataCollectionType": ["Synthetic: drawn from a generative model"],
        "rai:personalSensitiveInformation": f"{verdict}{spite} audit.json holds what was tried and found.",
        "rai:dataLimitations": [
            "Attributes are what the model was asked to show; nobody has read the images and confirmed them.",
            "Rare findings are rarer than in the source, or missing.",
            "Not for diagnosis, treatment, or the evaluation of a device without real images beside it.",
        ],
        "rai:dataBiases": [f"Those of the source ({source.get('name') or 'unnamed'}) are in the images too."],
        "rai:dataUseCases": ["Developing, testing and teaching with images whose originals cannot leave the institution."],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "cases.tsv",
                "name": "cases.tsv",
                "description": "One row a case: its seed, what was asked of it, and its files.",
                "contentUrl": "cases.tsv",
                "encodingFormat": "text/tab-separated-values",
                "sha256": sha256_of(folder / "cases.tsv"),
            },
            *(
                {"@type": "cr:FileSet", "@id": identity, "name": identity, "encodingFormat": kind, "includes": pattern}
                for each in formats
                for identity, pattern, kind in SETS[each]
                if identity != "masks" or masked
            ),
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "case", "name": "case", "key": {"@id": "case/id"}, "field": _fields(cohort, formats)}
        ],
    }


def _fields(cohort: Cohort, formats: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of ``cases.tsv``."""
    attributes = [(a.name, "sc:Text" if a.values else "sc:Float") for a in cohort.header.conditions.attributes]
    files = [("image", "sc:Text")] if "nifti" in formats else []
    return [
        {
            "@type": "cr:Field",
            "@id": f"case/{column}",
            "name": column,
            "dataType": kind,
            "source": {"fileObject": {"@id": "cases.tsv"}, "extract": {"column": column}},
        }
        for column, kind in [("id", "sc:Text"), ("seed", "sc:Integer"), ("modality", "sc:Text"), *attributes, *files]
    ]
