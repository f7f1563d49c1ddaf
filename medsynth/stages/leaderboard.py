"""Several synthetic cohorts beside each other, against the same held-out people: every metric and its interval, and ranks with doubt.

One protocol for all: the same grid and grey values (`medsynth.stages.anyfolder`), as many subjects of each cohort as the smallest has, the
same training subjects for scales and for the floor between real and real. `board` finds the numbers, `page` tells them; there is no score
over all metrics, since each sees other defects.

Feature spaces are learned from the training images alone, and tried on held-out ones, as in an evaluation. All cohorts are seen through
one seed of a space: of those that qualified, the one with the middle mean over the cohorts, which favours none of them.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from medsynth import __version__
from medsynth.cohort import Cohort
from medsynth.features import extract, identity
from medsynth.metrics.intervals import score, spread
from medsynth.metrics.learned import Qualified, middle, through, unqualified
from medsynth.metrics.ranking import Difference, differences, ranks
from medsynth.metrics.score import Metric, Sample, Score
from medsynth.rng import generator_for, seed_for
from medsynth.stages import figures, spaces
from medsynth.stages.evaluate import EXTRACTORS, MOST, material_of, rounded, sample_of, trials_of

TEMPLATE = "leaderboard.html.j2"
FLOOR = "real against real"
SHOWN = {2: 24, 3: 8}  # images of each cohort on the page, by dimensions
MEANS = {"low": "lower is better", "high": "higher is better", "anchor": "the nearer to real against real the better"}


def board(
    train: Cohort, holdout: Cohort, cohorts: Mapping[str, Cohort], metrics: Mapping[str, Metric], *,
    seed: int, subsamples: int, permutations: int, encoder_steps: int, sanity: str, cache: Path, weights: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What ``leaderboard.json`` holds. ``cache`` is a folder for features and encoders, which a second look at the same images finds there;
    ``encoder_steps`` and ``sanity`` are those of an evaluation, ``weights`` are folders of networks (`medsynth.pretrained`)."""
    cohorts = dict(sorted(cohorts.items()))  # whoever is named first has no other numbers
    every = {"train": train, "holdout": holdout, **cohorts}
    most = min(MOST, 6000 // len(every))  # distances between all pairs of all cohorts are held in memory
    size = min(most, len(set(train.subjects)), *(len(set(cohort.subjects)) for cohort in cohorts.values()))
    used = {
        name: cohort.where(cohort.cases[i] for i in spread(cohort.subjects, size if name in cohorts else most, seed=seed))
        for name, cohort in every.items()
    }
    metrics, pretrained, unused = spaces.of_weights(metrics, weights, train.header.dims)
    asked = {metric.features for metric in metrics.values()}
    encoders, refused = spaces.learned(asked, used["train"], encoder_steps, cache / "encoders", seed=seed)
    learned = {space: encoder for each in encoders.values() for space, encoder in each.items()}
    extractors = {name: EXTRACTORS[name] for name in sorted(asked & set(EXTRACTORS))} | pretrained | learned
    samples = {
        name: sample_of(cohort, {key: extract(extractor, cohort, cache) for key, extractor in extractors.items()}, extractors)
        for name, cohort in used.items()
    }
    trials = trials_of(encoders, material_of(samples, learned, cache / "defects", sanity, seed)) if learned else {}
    for name, each in encoders.items():
        if not any(trials[space].passed for space in each):
            refused[name] = unqualified(trials, each)
    rows = []
    for name in tqdm(metrics, desc="evaluate", unit="metric"):
        metric, how = metrics[name], {"seed": seed_for(seed, "metric", name), "subsamples": subsamples}
        space, seen = metric.features, samples
        if space in encoders and space not in refused:
            space = _middle(metric, samples, list(cohorts), {space: trials[space] for space in encoders[metric.features]}, how["seed"])
            seen = {key: through(sample, metric.features, space) for key, sample in samples.items()}
        real, made = (seen["train"], seen["holdout"]), {key: seen[key] for key in cohorts}
        scores = {key: score(name, metric, *real, sample, **how, permutations=permutations) for key, sample in made.items()}
        if metric.features in refused:  # there are no features of that name, so nothing was computed
            scores = {key: replace(row, reason=refused[metric.features]) for key, row in scores.items()}
        pairs = differences(metric, *real, made, **how) if all(row.status == "ok" for row in scores.values()) else []
        rows.append(_row(name, metric, space, scores, pairs))
    ranked = [row for row in rows if row["cohorts"][0]["rank"]]
    means = {name: _mean([sum(c["rank"]) / 2 for row in ranked for c in row["cohorts"] if c["cohort"] == name]) for name in cohorts}
    counts = {
        name: {"cases": len(cohort), "subjects": len(set(cohort.subjects)), "cases_used": len(used[name])} for name, cohort in every.items()
    }
    return rounded(
        {
            "medsynth": __version__,
            "unit": train.header.unit,
            "n": counts,
            "subjects_compared": size,
            "features": {name: identity(extractor) for name, extractor in extractors.items()},
            "qualified": {space: {"passed": trial.passed, "reason": trial.reason, **trial.told} for space, trial in trials.items()},
            "order": sorted(cohorts, key=lambda name: (means[name], name)),
            "metrics": rows,
            "not_computed": [{"name": f"scores on {name}", "reason": reason} for name, reason in unused.items()],
            "seed": seed,
            "subsamples": subsamples,
            "permutations": permutations,
        }
    )


def _middle(metric: Metric, samples: Mapping[str, Sample], cohorts: Sequence[str], trials: Mapping[str, Qualified], seed: int) -> str:
    """The seed of a learned space through which all cohorts are seen."""

    def mean(space: str) -> Score:
        train, holdout, *made = (through(samples[name], metric.features, space) for name in ("train", "holdout", *cohorts))
        rows = [score(space, metric, train, holdout, sample, seed=seed, subsamples=2, permutations=0) for sample in made]
        there = all(row.value is not None for row in rows)
        return replace(rows[0], value=_mean([row.value for row in rows]) if there else None)

    return middle({space: mean(space) for space in trials}, trials)


def _row(name: str, metric: Metric, space: str, scores: Mapping[str, Score], pairs: Sequence[Difference]) -> dict[str, Any]:
    first = next(iter(scores.values()))
    places = ranks(list(scores), pairs) if all(row.status == "ok" for row in scores.values()) else {}
    return {
        "name": name,
        "features": metric.features,
        "space": space,
        "best": metric.best,
        "floor": {"value": first.anchor, "interval": first.anchor_interval},
        "cohorts": [
            {
                "cohort": cohort,
                "value": row.value,
                "interval": row.interval,
                "p": row.p,
                "rank": places.get(cohort),
                "status": row.status,
                "reason": row.reason,
            }
            for cohort, row in scores.items()
        ],
        "differences": [asdict(pair) | {"certain": pair.certain} for pair in pairs],
    }


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def page(told: Mapping[str, Any], train: Cohort, holdout: Cohort, cohorts: Mapping[str, Cohort]) -> str:
    """The leaderboard as HTML, self-contained; it shows real images. ``told`` is what `board` found, with what was read."""
    grids = {"real (held out)": holdout, **{name: cohorts[name] for name in told["order"]}}
    context = {
        "told": told,
        "means": MEANS,
        "floor": FLOOR,
        "absent": absent(told),
        "plots": {row["name"]: _uri(_forest(row, told["order"])) for row in told["metrics"] if row["floor"]["value"] is not None},
        "grids": {name: _uri(_grid(cohort, told["seed"])) for name, cohort in grids.items()},
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "place": place}
    return environment.get_template(TEMPLATE).render(context)


def absent(told: Mapping[str, Any]) -> dict[str, str]:
    """Each reason for which something was computed for no cohort, and what that was: ``label_volumes, implausible``."""
    found: dict[str, list[str]] = {}
    for row in told["metrics"]:
        if row["floor"]["value"] is None:
            found.setdefault(row["cohorts"][0]["reason"], []).append(title_of(row))
    for each in told["not_computed"]:
        found.setdefault(each["reason"], []).append(each["name"])
    return {reason: ", ".join(names) for reason, names in found.items()}


def _forest(row: Mapping[str, Any], order: Sequence[str]) -> bytes:
    found = {cohort["cohort"]: cohort for cohort in row["cohorts"]}
    lines = [(FLOOR, row["floor"]), *((name, found[name]) for name in order if found[name]["value"] is not None)]
    return figures.forest(
        title_of(row), MEANS[row["best"]], [(name, each["value"], each["interval"]) for name, each in lines], row["floor"]["interval"]
    )


def title_of(row: Mapping[str, Any]) -> str:
    """``kid (random_convolution)``."""
    return f"{row['name']} ({row['features']})" if row["features"] else row["name"]


def number(value: float | None) -> str:
    """Three significant digits."""
    return "–" if value is None else f"{value:.3g}"


def place(rank: Sequence[int] | None) -> str:
    """``1``, or ``1–2`` for a rank that is shared."""
    return "–" if rank is None else f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def _grid(cohort: Cohort, seed: int) -> bytes:
    order = generator_for(seed, "grid").permutation(len(cohort))[: SHOWN[cohort.header.dims]]
    longest = 128 if cohort.header.dims == 2 else 96
    images = cohort.where(cohort.cases[i] for i in order).images()[:, 0]
    return figures.mosaic([figures.picture(image, cohort.header.spacing, longest) for image in images], 8 if cohort.header.dims == 2 else 2)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
