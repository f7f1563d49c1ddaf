"""The model that drew the cohort, under the headings of Mitchell et al. 2019, "Model cards for model reporting" (FAT*, section 4)."""

from collections.abc import Mapping
from typing import Any

from medsynth.cohort import Cohort
from medsynth.export.dicom import Provenance
from medsynth.export.markdown import line, table


def model_card(
    cohort: Cohort,
    *,
    name: str,
    source: Mapping[str, str],
    made_by: Provenance,
    audit: Mapping[str, Any],
    model: Mapping[str, Any],
    training: Mapping[str, int],
) -> str:
    """The card as Markdown. ``model`` is the checkpoint's own description (network, build, process, weights), or empty where the cohort
    came from elsewhere; ``training`` counts the real ``cases`` and ``subjects`` learned from.
    """
    header = cohort.header
    attributes = ", ".join(attribute.name for attribute in header.conditions.attributes) or "none"
    unit = "subjects" if header.unit == "subject" else "images whose subjects are not known"
    parts = [
        f"# {line(name)}: model card",
        "## Model details",
        table(("", ""), _details(made_by, model)),
        "## Intended use",
        "To draw this cohort, for developing, testing and teaching with images whose originals cannot leave the institution. Not for "
        "diagnosis, and not to complete, correct or enlarge the images of a patient.",
        "## Factors",
        f"Asked of the model: {line(attributes)}. Modality {line(header.modality)}, one grid of {' x '.join(map(str, header.shape))}; "
        "other scanners, ages, diseases and body regions than those of the source were never seen.",
        "## Metrics",
        "Scores and their definitions are in `metrics.json`, to read in `datasheet.md` and `scorecard.md`.",
        "## Evaluation data",
        "Held-out people of the same source, whom the model has not seen. How well the images serve another institution was not measured.",
        "## Training data",
        f"{training['cases']} real images of {training['subjects']} {unit}, from {line(source.get('name') or 'an unnamed source')}; "
        f"licence: {line(source.get('licence') or 'not stated')}.",
        "## Quantitative analyses",
        f"Audit verdict: {audit['verdict']} at the level “{line(audit['level']['name'])}” (`audit.json`).",
        "## Ethical considerations",
        "The weights hold more about the people of the training set than the images do. A model learns the biases of its source, and shows "
        "rare findings more rarely still, or not at all.",
        "## Caveats and recommendations",
        "Every new cohort of this model needs its own audit. A label is what was asked for, and nobody has confirmed it.",
    ]
    return "\n\n".join(parts) + "\n"


def _details(made_by: Provenance, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("Software", f"medsynth {made_by.version}"), ("Weights, SHA-256", f"`{made_by.weights}`")]
    for part in ("network", "process"):
        described = {key: value for key, value in model.get(part, {}).items() if key != "_target_"}
        if target := model.get(part, {}).get("_target_"):
            settings = ", ".join(f"{key}={value}" for key, value in described.items())
            rows.append((part.capitalize(), f"{target.rpartition('.')[2]} ({settings})"))
    if parameters := model.get("weights", {}).get("parameters"):
        rows.append(("Parameters", f"{parameters}"))
    return rows
