"""The release's datasheet: what it is, under which terms, how it was made, what was proven and what was not (after Gebru et al. 2021).

It says which attacks were tried and up to which bound nothing was found. It promises nothing beyond that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medsynth.cohort import Cohort
from medsynth.export.dicom import SERIES_DESCRIPTION, STUDY_DATE, Provenance
from medsynth.export.markdown import interval, line, number, table

VERDICTS = {"pass": "passed", "fail": "**FAILED**", "inconclusive": "**undecided**"}
BEST = {"low": "low is good", "high": "high is good", "anchor": "near real is good"}
FORMATS = {
    "nifti": "`nifti/`: one NIfTI image a case, and masks where there are any; affines are RAS+ millimetres",
    "bids": "`bids/`: the same images as a BIDS dataset",
    "model": "`model/`: the denoiser that drew them, as safetensors weights and a description",
    "dicom": "`dicom/`: one patient, study and series a case, masks as DICOM Segmentation",
}


def datasheet(
    cohort: Cohort,
    *,
    name: str,
    source: Mapping[str, str],
    made_by: Provenance,
    audit: Mapping[str, Any],
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    training: Mapping[str, int],
    formats: Sequence[str],
    privacy: Mapping[str, Any] | None = None,
    override: str = "",
    objections: Sequence[str] = (),
) -> str:
    """The datasheet as Markdown.

    ``source`` is the name, licence and terms of the real data; ``audit`` and ``metrics`` are what the release holds as ``audit.json`` and
    ``metrics.json``; ``settings`` is flat and without paths; ``training`` counts the real ``cases`` and ``subjects`` learned from;
    ``privacy`` is the promise of differential privacy that the model was trained under, or None; ``override`` is the written reason for
    releasing in spite of the ``objections``.
    """
    parts = [
        [f"# {name}: a synthetic {cohort.header.modality} cohort"],
        _override(override, objections),
        _what(cohort, formats),
        _terms(source),
        _made(cohort, made_by, settings, training, privacy),
        _proof(cohort, audit, formats),
        _quality(metrics),
        _use(source, audit),
        _files(formats),
    ]
    return "\n\n".join(block for part in parts for block in part) + "\n"


def _override(reason: str, objections: Sequence[str]) -> list[str]:
    if not reason:
        return []
    return [
        "> **RELEASED IN SPITE OF ITS EVIDENCE.** The audit does not allow this release. A person let it go for this written reason:\n>\n"
        f"> > {line(reason)}\n>\n> What stood against it:\n>\n" + "\n".join(f"> - {line(objection)}" for objection in objections)
    ]


def _what(cohort: Cohort, formats: Sequence[str]) -> list[str]:
    header = cohort.header
    noun = "volumes" if header.dims == 3 else "images"
    asked = sorted({attribute for case in cohort for attribute in case.condition})
    rows = [
        ("Cases", f"{len(cohort)} synthetic {noun}"),
        ("Modality", header.modality),
        ("Size", f"{' x '.join(map(str, header.shape))} at {' x '.join(f'{s:.4g}' for s in header.spacing)} mm"),
        ("Values", "whole numbers" if header.integer else "real numbers" + (", Hounsfield units" if header.modality == "CT" else "")),
        ("Masks", "labels " + ", ".join(map(str, header.labels)) if any(case.mask for case in cohort) else "none"),
        ("Requested attributes", ", ".join(asked) or "none"),
        ("Formats", ", ".join(formats)),
        ("Manifest digest", f"`{cohort.digest}`"),
    ]
    return [
        "## What it is",
        f"{len(cohort)} {header.modality} {noun} drawn from a diffusion model. No image was acquired from a person. "
        "Attributes such as sex, age or a diagnosis are what the model was *asked* to show; nobody has read the images and confirmed them. "
        "Not for clinical use. Every DICOM object says so in its header: Synthetic Data (0008,001C) is YES, and the series is called "
        f"“{SERIES_DESCRIPTION}”.",
        table(("", ""), rows),
    ]


def _terms(source: Mapping[str, str]) -> list[str]:
    rows = [
        ("Source", source.get("name", "")),
        ("Licence of the source", source.get("licence", "")),
        ("Terms of the source", source.get("terms", "")),
    ]
    return [
        "## Source, licence and terms",
        "The model learned from these data. Whether and how their licence and terms reach what a model drew from them is for the releasing "
        "institution to decide; until it has, treat them as binding here too.",
        table(("", ""), [(label, value or "not stated") for label, value in rows]),
    ]


def _made(
    cohort: Cohort,
    made_by: Provenance,
    settings: Mapping[str, Any],
    training: Mapping[str, int],
    privacy: Mapping[str, Any] | None,
) -> list[str]:
    unit = "subjects" if cohort.header.unit == "subject" else "images whose subjects are not known"
    rows = [
        ("Software", f"medsynth {made_by.version}"),
        ("Learned from", f"{training['cases']} real images of {training['subjects']} {unit}"),
        (
            "Differential privacy of the weights",
            f"epsilon {number(privacy['epsilon'])} at delta {number(privacy['delta'])}, for any one {privacy['record']} of "
            f"{privacy['records']} (DP-SGD, {privacy['steps']} steps)"
            if privacy
            else "none",
        ),
        ("Model weights, SHA-256", f"`{made_by.weights}`"),
        ("Settings fingerprint of the sampling", f"`{made_by.fingerprint}`"),
    ]
    details = "\n".join(f"{key} = {value}" for key, value in sorted(settings.items()))
    return [
        "## How it was made",
        "Each case has its own seed (in `manifest.jsonl`); the same model, settings and seed draw the same case again. DICOM UIDs are "
        f"derived from weights, settings, seed and case id; study dates ({STUDY_DATE}) and birth dates are a convention and mean nothing.",
        table(("", ""), rows),
        f"<details><summary>Settings</summary>\n\n```\n{details}\n```\n\n</details>",
    ]


def _proof(cohort: Cohort, audit: Mapping[str, Any], formats: Sequence[str]) -> list[str]:
    level = audit.get("level", {})
    model = "itself. Its weights hold more about the training data than the images do; they are not released"
    if "model" in formats:
        model = "beyond what the attack on it in the table tried. Its weights, which are released too, hold more than the images do"
    rows = [
        (
            finding["check"] + ("" if finding.get("required", True) else " (for information)"),
            VERDICTS[finding["verdict"]],
            number(finding.get("value")),
            interval(finding.get("interval")),
            number(finding.get("control")),
            number(finding.get("limit")),
            finding.get("why", ""),
        )
        for finding in audit.get("findings", [])
    ]
    per_image = [
        "**Every claim here is about images, not people:** the source does not say which images belong to one person, so images of one "
        "person may stand on both sides of the control."
    ]
    filtered = [
        f"**Copies were rejected while this cohort was drawn.** What the model drew first was judged with them in it: "
        f"{VERDICTS[rejected['unfiltered']['verdict']]}. {len(rejected['cases'])} drawn cases were taken for copies of training cases and "
        "drawn anew; their ids, and everything that was found in the unfiltered cohort, stand in `audit.json`. The verdict above and the "
        "table below are about the cohort after it, and `confirmation` is a search of another kind than the one that rejected."
        for rejected in filter(None, [audit.get("rejected")])
    ]
    return [
        "## The evidence",
        f"Verdict: {VERDICTS[audit['verdict']]}, at the level of proof **{level.get('name', 'not stated')}**, chosen before the audit.",
        *filtered,
        f"What a pass at this level claims: {level.get('claim', 'not stated')}",
        *(per_image if cohort.header.unit == "image" else []),
        "The cohort was attacked. Each attack also ran on data that cannot leak (control) and on leaks planted on purpose; an attack that "
        "misses those is undecided, whatever it finds. Intervals are 95 %. Full numbers: `audit.json`.",
        table(("Attack", "Verdict", "Found", "95 % interval", "Control", "Limit", "Why"), rows),
        *_together(audit),
        "### What this does not prove",
        "- That no person can be recognised by any means. Only the attacks listed were tried, with these data, up to these bounds.\n"
        "- Anything about attacks found later, or about knowledge that an attacker has of a person from elsewhere.\n"
        f"- Anything about the model {model}.\n"
        "- Anything about other cohorts drawn from the same model: each is audited on its own.\n"
        "- That the law treats these data in one way or another. That is a judgement of the releasing institution, case by case.",
    ]


def _together(audit: Mapping[str, Any]) -> list[str]:
    """All releases of the training set: who collects them all has them all."""
    if not (all_of := audit.get("releases")):
        return []
    bound, hard = all_of["copies"], all_of["hard_copies"]
    near = f" Near-exact copies found among them: {hard['count']}." if hard else ""
    untold = f" (of {all_of['untold']} nothing but the number is known)" if all_of.get("untold") else ""
    return [
        f"Released from this training set so far, this cohort included: {all_of['cohorts']} "
        f"{'cohort' if all_of['cohorts'] == 1 else 'cohorts'}, {all_of['cases']} cases.{near} Taken together at most {bound['cases']} of "
        f"them ({bound['upper']:.2%}) copy a training image, with at least {bound['confidence']:.0%} confidence, since the bounds of all "
        f"must hold at once. Looks taken at cohorts of this training set: {all_of['looks']}{untold}."
    ]


def _quality(metrics: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            score["name"] + (f" ({score['features']})" if score.get("features") else ""),
            number(score.get("value")),
            interval(score.get("interval")),
            number(score.get("anchor")) + (f" {interval(score['anchor_interval'])}" if score.get("anchor_interval") else ""),
            BEST.get(score.get("best", ""), ""),
            f"{score.get('n_real', 0)} / {score.get('n_synthetic', 0)}",
            score.get("reason", "") if score.get("status", "ok") != "ok" else "",
        )
        for score in metrics.get("scores", [])
    ]
    return [
        "## How good the images are",
        "Beside each score stands the same score between real training and real held-out images: the best that a generator could reach. "
        "Quality says nothing about privacy: copies of patients would score best. Full numbers: `metrics.json`.",
        table(("Score", "Synthetic", "95 % interval", "Real against real", "Reading", "n real / synthetic", "Note"), rows),
    ]


def _use(source: Mapping[str, str], audit: Mapping[str, Any]) -> list[str]:
    weak = audit.get("level", {}).get("name") == "demo"
    demo = (
        ["- **The level “demo” shows that the machinery runs. It is no ground for giving away data made from real patients.**"]
        if weak
        else []
    )
    return [
        "## Use",
        "\n".join(
            [
                *demo,
                "- Meant for developing, testing and teaching with images whose originals cannot leave the institution.",
                "- Not for diagnosis, treatment or the evaluation of a device without real images beside it.",
                "- Rare findings are rarer here than in the source, or missing: a model of this kind shows what it has seen often.",
                f"- Biases of the source ({source.get('name') or 'unnamed'}) are in the images too.",
                "- Do not mix these files with real ones without keeping their mark; derived data keep Synthetic Data (0008,001C) = YES.",
            ]
        ),
    ]


def _files(formats: Sequence[str]) -> list[str]:
    rows = [FORMATS[name] for name in formats] + [
        "`cases.tsv`: one row a case, with its seed and what was asked of it; `manifest.jsonl`: the same with the SHA-256 of its files",
        "`audit.html`: the audit on one page, for a data protection officer; `report.html` (where there is one): the whole report",
        "`scorecard.md`: seven questions about these data, answered; `model_card.md`: the model; `croissant.json`: for machines",
        "`audit.json`, `metrics.json`: the same evidence in aggregate numbers; `audit.json` keeps to a JSON Schema (medsynth/audit)",
        "`SHA256SUMS`, `signature.json`: of every file, and signed; check with `medsynth verify .` or `sha256sum -c SHA256SUMS`",
    ]
    return ["## Files", "\n".join(f"- {row}" for row in rows)]
