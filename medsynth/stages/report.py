"""The report: one page that a data protection officer can sign, a physicist can check and a student can read. Verdict first.

Writes ``index.html`` (stays inside: real images beside synthetic ones, the nearest pairs), ``report.json`` (the same rows) and, only where
the audit's verdict is "pass", ``shareable.html``, which is given no real pixel, no pair and no case's id at all. The pages are
self-contained: styles and pictures are inline, there is no address, and no script but the viewer of volumes. Words live in
``report.html.j2``, numbers come from `facts`, pictures from `figures`, volumes to turn from `viewer`.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.errors import MedsynthError
from medsynth.rng import generator_for
from medsynth.stages import Run, figures, weights_of
from medsynth.stages.facts import Story, facts_of, read
from medsynth.stages.viewer import viewer

TEMPLATE = "report.html.j2"
GRID = {2: 36, 3: 8}  # cases in a grid, by dimensions
PER_CLASS = {2: 12, 3: 2}
CLASSES = 8  # rows of classes; the attributes' tables have all of them
PAIRS = 12
PREVIEWS = 8
SMALL_CELL = 11  # fewer people than this are not counted exactly in the shareable copy (the customary bound of 9 % risk)


def work(run: Run, folder: Path) -> None:
    story, seed = read(run.root), run.settings.run.seed
    facts = facts_of(story, seed)
    told = {name: path for name, path in story.aside.items() if facts[name.partition("_")[0]]}
    plots = plots_of(story, facts) | {name: path.read_bytes() for name, path in told.items()}
    pictures = pictures_of(story, facts, seed)
    page = {**facts, "plots": {name: _plot(png) for name, png in plots.items()}, "quality_plots": _quality_plots(story)}
    (folder / "figures").mkdir(exist_ok=True)
    for name, png in {**plots, "synthetic": figures.mosaic(_greys(story.synthetic, _lot(story.synthetic, seed, "synthetic")))}.items():
        _write(folder / "figures" / f"{name}.png", png)
        # Curves are sums over cases and pictures are of synthetic cases alone: no real image ever gets here.
        run.tracker.figure(name, folder / "figures" / f"{name}.png", synthetic=True)
    for path in story.plots:
        run.tracker.figure(path.stem, path, synthetic=True)
    shareable = folder / "shareable.html"
    shareable.unlink(missing_ok=True)
    if story.verdict == "pass":
        without = {"pictures": _synthetic_only(pictures), "viewer": viewer_of(story, seed, inside=False)}
        html = render({**page, **_without_people(facts), **without, "pairs": [], "previews": [], "way": None, "inside": False})
        refuse_people(html, story.real)
        _write(shareable, html.encode())
        run.tracker.artifact(shareable, "report")
        run.tracker.alias(weights_of(run.root), "candidate")
        if run.settings.release.model:
            run.tracker.artifact(run.root / "train" / "denoiser", "model")
    # The receipt binds report.json, and that binds the page that is there after a pass alone.
    content = {**facts, "shareable_sha256": sha256_of(shareable) if shareable.exists() else None}
    _write(folder / "report.json", (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    previews = [{"name": path.stem, "uri": _uri(path.read_bytes())} for path in _evenly(story.previews, PREVIEWS)]
    within = {
        "pictures": pictures,
        "viewer": viewer_of(story, seed, inside=True),
        "pairs": pairs_of(story.findings, story.real, story.synthetic),
    }
    html = render({**page, **within, "previews": previews, "way": way_of(story), "inside": True})
    _write(folder / "index.html", html.encode())


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML. All text is escaped: a condition's value or a licence is data, whatever it holds."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "amount": amount}
    return environment.get_template(TEMPLATE).render(page)


def number(value: float | None) -> str:
    """Three significant digits."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def amount(value: float | None, counts: bool) -> str:
    """A count as it is, a rate as per cent."""
    if value is None:
        return "–"
    return str(value) if counts else f"{100 * value:.3g} %"


# ------------------------------------------------------------------------------------------------------------------------------------
# Pictures


def pictures_of(story: Story, facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Cases chosen by lot, real beside synthetic, over all and class by class of the first class attribute; and the worst and the best."""
    train = story.real.split("train")
    classes = []
    for attribute in [a for a in story.real.header.conditions.attributes if a.values][:1]:
        for value in attribute.values[:CLASSES]:
            both = [_of_class(cohort, attribute.name, value) for cohort in (train, story.synthetic)]
            real, synthetic = (_greys(cohort, _lot(cohort, seed, value, PER_CLASS)) for cohort in both)
            classes.append({"attribute": attribute.name, "value": value, "real": _uris(real), "synthetic": _uris(synthetic)})
    return {
        "real": _uris(_greys(train, _lot(train, seed, "real"))),
        "synthetic": _uris(_greys(story.synthetic, _lot(story.synthetic, seed, "synthetic"))),
        "classes": classes,
        "extremes": _extremes(story, facts["extremes"]),
    }


def _extremes(story: Story, found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    cases = {case.id: case for case in story.synthetic}

    def shown(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"picture": _uri(figures.png(_grey(story.synthetic, case))), "distance": row["distance"]}
            for row in rows
            if (case := cases.get(row["case"]))
        ]

    return {"features": found["features"], "worst": shown(found["worst"]), "best": shown(found["best"])}


def viewer_of(story: Story, seed: int, *, inside: bool) -> dict[str, Any] | None:
    """The first volumes of the lot, to slice and turn: a real one beside a synthetic one, or the latter alone. Slices need no viewer."""
    if story.real.header.dims == 2:
        return None
    train = story.real.split("train")
    real = [("Real (training)", train, case) for case in _lot(train, seed, "real")[:1]] if inside else []
    return viewer(real + [("Synthetic", story.synthetic, case) for case in _lot(story.synthetic, seed, "synthetic")[:1]])


def pairs_of(findings: Mapping[str, Any], real_cohort: Cohort, synthetic_cohort: Cohort) -> list[dict[str, Any]]:
    """The nearest pairs that the checks listed, nearest first, with their pictures."""
    real, synthetic = {case.id: case for case in real_cohort}, {case.id: case for case in synthetic_cohort}

    def picture(cohort: Cohort, case: Case) -> str:
        return _uri(figures.png(_grey(cohort, case)))

    groups = []
    for finding in findings["findings"]:
        listed = (finding.get("details") or {}).get("pairs") or []
        rows = [
            {
                **pair,
                "synthetic_picture": picture(synthetic_cohort, synthetic[pair["synthetic"]]),
                "train_picture": picture(real_cohort, real[pair["train"]]),
                "holdout_picture": picture(real_cohort, real[pair["holdout"]]),
            }
            for pair in sorted(listed, key=lambda pair: -pair["train_score"])[:PAIRS]
        ]
        if rows:
            groups.append({"check": finding["check"], "rows": rows})
    return groups


def plots_of(story: Story, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The curves as PNG files by name: training, and the attacks' scores. All are sums over cases."""
    plots = {}
    if story.history:
        plots["training"] = figures.curves(_training_panels(story.history), log=True)
    watched = [(row["step"], row["memorization"]) for row in story.history if row.get("memorization")]
    if watched:
        title, lines = "Loss that training cases are spared", {"gap": "share", "low": "95 %, low", "high": "95 %, high"}
        curves = {name: ([step for step, _ in watched], [gap[key] for _, gap in watched]) for key, name in lines.items()}
        plots["memorization"] = figures.curves([(title, "step", "share of the loss", curves)])
    panels = [
        (
            finding["check"],
            histogram.get("axis", "nearness to the closest other person's image"),
            _shares(histogram),
            _marks(details),
        )
        for finding in facts["findings"]
        if (histogram := (details := finding["details"]).get("histogram"))
    ]
    if panels:
        plots["audit"] = figures.histograms(panels)
    shifted = next((score["details"]["shifted"] for score in facts["scores"] if score["details"].get("shifted")), [])
    if shifted:
        plots["shifted"] = figures.bars("Texture features that moved most", "shift in standard deviations", _shifts(shifted))
    if facts["steps"]:
        n, errors = [row["steps"] for row in facts["steps"]], [row["error"] for row in facts["steps"]]
        title = "Images against sampling steps"
        plots["steps"] = figures.curves([(title, "sampling steps", "difference, share of the window", {"": (n, errors)})], log=True)
    return plots


def way_of(story: Story) -> dict[str, Any] | None:
    """The sampler's way from noise to image. What it passes through was not audited, so it is for the inside alone, like the previews."""
    if not story.way:
        return None
    spacing = story.synthetic.header.spacing[:2]
    return _plot(figures.ways(story.way["sigmas"], story.way["noisy"], story.way["expected"], spacing))


def _shifts(shifted: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {row["feature"].replace("_", " "): row["d"] for row in shifted}


def _training_panels(history: Sequence[Mapping[str, Any]]) -> list[tuple]:
    """Loss on the training set, and on the validation set by noise level. A row holds either, or both."""
    fitted = [row for row in history if row.get("loss") is not None]
    panels = [("Training loss", "step", "loss", {"training": ([row["step"] for row in fitted], [row["loss"] for row in fitted])})]
    watched = [row for row in history if row.get("validation")]
    levels = list(dict.fromkeys(level for row in watched for level in row["validation"]))
    lines = {
        level: (
            [row["step"] for row in watched if level in row["validation"]],
            [row["validation"][level] for row in watched if level in row["validation"]],
        )
        for level in levels
    }
    return [*panels, ("Validation loss by noise level", "step", "loss", lines)] if lines else panels


def _shares(histogram: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """``{"edges": [...], "counts": {name: [...]}}`` as shares, so that cohorts of different sizes compare."""
    return {name: (histogram["edges"], [count / max(1, sum(counts)) for count in counts]) for name, counts in histogram["counts"].items()}


def _marks(details: Mapping[str, Any]) -> dict[str, float]:
    return {name.replace("_", " "): details[name] for name in ("threshold", "hard_line") if details.get(name) is not None}


def _quality_plots(story: Story) -> list[dict[str, Any]]:
    return [{"name": path.stem, **_plot(path.read_bytes())} for path in story.plots]


def _plot(png: bytes) -> dict[str, Any]:
    """A curve with its width in CSS pixels: figures are made at 150 dots an inch, and a page has 96, so type has its true size."""
    return {"uri": _uri(png), "width": int.from_bytes(png[16:20]) * 96 // 150}


def _lot(cohort: Cohort, seed: int, what: str, counts: Mapping[int, int] = GRID) -> list[Case]:
    """Cases drawn without replacement, in the order of the draw."""
    order = generator_for(seed, "report", what).permutation(len(cohort))
    return [cohort.cases[i] for i in order[: counts[cohort.header.dims]]]


def _of_class(cohort: Cohort, name: str, value: str) -> Cohort:
    return cohort.where(case for case in cohort if str(case.condition.get(name)) == value)


def _grey(cohort: Cohort, case: Case) -> np.ndarray:
    longest = 256 if len(case.shape) == 2 else 160
    return figures.picture(cohort.where([case]).images()[0, 0], case.spacing, longest)


def _greys(cohort: Cohort, cases: Iterable[Case]) -> list[np.ndarray]:
    return [_grey(cohort, case) for case in cases]


def _uris(greys: Iterable[np.ndarray]) -> list[str]:
    return [_uri(figures.png(grey)) for grey in greys]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them from first to last."""
    return [paths[i] for i in sorted({round(k) for k in np.linspace(0, len(paths) - 1, min(count, len(paths)))})] if paths else []


# ------------------------------------------------------------------------------------------------------------------------------------
# The copy that may be passed on


def _without_people(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of the facts differs in the shareable copy: no case's id, no count of few people."""
    findings = [
        {**f, "details": {}, "numbers": [row for row in f["numbers"] if not row[0].startswith(("subjects", "cases"))]}
        for f in facts["findings"]
    ]
    conditions = [
        {
            **table,
            "rows": [
                {**row, "real": row["real"] if row["subjects"] >= SMALL_CELL or row["real"] == 0 else f"of < {SMALL_CELL} people"}
                for row in table["rows"]
            ],
        }
        for table in facts["conditions"]
    ]
    return {
        "findings": findings,
        "conditions": conditions,
        "extremes": None,
        "same": None,
        "groups": [row for row in facts["groups"] if row["subjects_real"] >= SMALL_CELL],
    }


def _synthetic_only(pictures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "real": [],
        "synthetic": pictures["synthetic"],
        "classes": [{**group, "real": []} for group in pictures["classes"]],
        "extremes": pictures["extremes"],
    }


def refuse_people(html: str, real: Cohort) -> None:
    """Fail where the page quotes a real case's id or subject: the last look before the shareable copy is written."""
    words = set(re.findall(r"[\w-]+(?:\.[\w-]+)*", re.sub(r"[\w+/]{200,}", "", html)))
    people = {case.id for case in real} | set(real.subjects)
    # An id of one or two characters is a number on any page
    quoted = {person for person in people & words if len(person) > 2}
    if quoted:
        raise MedsynthError(
            f"The shareable report would quote {len(quoted)} real cases, so it is not written. This is a fault of medsynth."
        )


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
