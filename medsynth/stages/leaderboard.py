"""Several synthetic cohorts beside each other, against the same held-out people: every metric and its interval, and ranks with doubt.

One protocol for all: the same grid and grey values (`medsynth.stages.anyfolder`), as many subjects of each cohort as the smallest has, the
same training subjects for scales and for the floor between real and real. `board` finds the numbers, `page` tells them; there is no score
over all metrics, since each sees other defects.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from medsynth import __version__
from medsynth.cohort import Cohort
from medsynth.features import extract, identity
from medsynth.metrics.intervals import score, spread
from medsynth.metrics.ranking import Difference, differences, ranks
from medsynth.metrics.score import Metric, Score
from medsynth.rng import generator_for, seed_for
from medsynth.stages import figures, spaces
from medsynth.stages.evaluate import EXTRACTORS, MOST, rounded, sample_of

TEMPLATE = "leaderboard.html.j2"
FLOOR = "real against real"
SHOWN = {2: 24, 3: 8}  # images of each cohort on the page, by dimensions
MEANS = {"low": "lower is better", "high": "higher is better", "anchor": "the nearer to real against real the better"}


def board(
    train: Cohort, holdout: Cohort, cohorts: Mapping[str, Cohort], metrics: Mapping[str, Metric], *,
    seed: int, subsamples: int, permutations: int, cache: Path, weights: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What ``leaderboard.json`` holds. ``cache`` is a folder for features, which a second look at the same images finds there;
    ``weights`` are folders of networks (`medsynth.pretrained`)."""
    cohorts = dict(sorted(cohorts.items()))  # whoever is named first has no other numbers
    every = {"train": train, "holdout": holdout, **cohorts}
    most = min(MOST, 6000 // len(every))  # distances between all pairs of all cohorts are held in memory
    size = min(most, len(set(train.subjects)), *(len(set(cohort.subjects)) for cohort in cohorts.values()))
    used = {
        name: cohort.where(cohort.cases[i] for i in spread(cohort.subjects, size if name in cohorts else most, seed=seed))
        for name, cohort in every.items()
    }
    metrics, pretrained, unused = spaces.of_weights(metrics, weights, train.header.dims)
    extractors = {name: EXTRACTORS[name] for name in sorted({m.features for m in metrics.values()} & set(EXTRACTORS))} | pretrained
    samples = {
        name: sample_of(cohort, {key: extract(extractor, cohort, cache) for key, extractor in extractors.items()}, extractors)
        for name, cohort in used.items()
    }
    made = {name: samples[name] for name in cohorts}
    rows = []
    for name in tqdm(metrics, desc="evaluate", unit="metric"):
        how = {"seed": seed_for(seed, "metric", name), "subsamples": subsamples}
        real = samples["train"], samples["holdout"]
        scores = {key: score(name, metrics[name], *real, sample, **how, permutations=permutations) for key, sample in made.items()}
        pairs = differences(metrics[name], *real, made, **how) if all(row.status == "ok" for row in scores.values()) else []
        rows.append(_row(name, metrics[name], scores, pairs))
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
            "order": sorted(cohorts, key=lambda name: (means[name], name)),
            "metrics": rows,
            "not_computed": [{"name": f"scores on {name}", "reason": reason} for name, reason in unused.items()],
            "seed": seed,
            "subsamples": subsamples,
            "permutations": permutations,
        }
    )


def _row(name: str, metric: Metric, scores: Mapping[str, Score], pairs: Sequence[Difference]) -> dict[str, Any]:
    first = next(iter(scores.values()))
    places = ranks(list(scores), pairs) if all(row.status == "ok" for row in scores.values()) else {}
    return {
        "name": name,
        "features": metric.features,
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
        "plots": {row["name"]: _uri(_forest(row, told["order"])) for row in told["metrics"] if row["floor"]["value"] is not None},
        "grids": {name: _uri(_grid(cohort, told["seed"])) for name, cohort in grids.items()},
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "place": place}
    return environment.get_template(TEMPLATE).render(context)


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
