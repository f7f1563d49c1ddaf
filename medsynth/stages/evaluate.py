"""The stage that asks whether the cohort is good: every metric between held-out and synthetic cases, beside the same between real and real.

Reads the cohorts of `prepare` and `sample`, and for likelihoods the denoiser of `train`. Writes ``metrics.json``, ``figures/``, and what
took time for the next time (``features.npz``, ``learned.npz`` and ``weights-*.npz``: extractor and cohort to features; one file for each
stand-in and each injected defect; ``encoders/``; ``scores.json``). What could not be computed stands there with its reason; nothing is
left out in silence.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.cohort import Cohort, sha256_of
from medsynth.encoder import Encoder
from medsynth.errors import MedsynthError
from medsynth.features import Extractor, RandomConvolution, Texture, code_of, extract, identity
from medsynth.metrics import baselines, figures, sanity
from medsynth.metrics.defects import Material, material
from medsynth.metrics.intervals import score, spread
from medsynth.metrics.learned import Qualified, middle, through, told
from medsynth.metrics.likelihood import LikelihoodGap
from medsynth.metrics.schema import validated
from medsynth.metrics.score import Metric, Sample, Score
from medsynth.rng import seed_for
from medsynth.stages import Run, likelihood, spaces, weights_of

EXTRACTORS: Mapping[str, Extractor] = {"random_convolution": RandomConvolution(), "texture": Texture()}
SPLITS = ("train", "holdout", "synthetic")
PEOPLE = 11  # fewer people than this are drawn in no figure of structures: it would show single ones
MOST = 1000  # cases of each cohort: distances between all pairs of three cohorts are held in memory


def work(run: Run, folder: Path) -> None:
    settings = run.settings.evaluate
    seed = _seed(run)
    metrics: Mapping[str, Metric] = run.objects["metric"]
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    synthetic = Cohort.read(run.folder("sample") / "cohort.jsonl")
    _comparable(real, synthetic)
    cohorts = {"train": real.split("train"), "holdout": real.split("holdout"), "synthetic": synthetic}
    used = {name: _used(cohort, seed) for name, cohort in cohorts.items()}
    extractors = {name: EXTRACTORS[name] for name in sorted({m.features for m in metrics.values()} & set(EXTRACTORS))}
    features = _features(used, extractors, folder / "features.npz")
    encoders, untaught = taught(run, folder)
    metrics, pretrained, unused = spaces.of_weights(metrics, settings.weights, real.header.dims)
    extractors |= (learned := {space: encoder for each in encoders.values() for space, encoder in each.items()})
    if learned:
        also = _features(used, learned, folder / "learned.npz")
        features = {name: {**features[name], **also[name]} for name in features}
    for space, extractor in pretrained.items():
        also = _features(used, {space: extractor}, folder / f"weights-{space}.npz")
        features = {name: {**features[name], **also[name]} for name in features}
    extractors |= pretrained
    samples = {name: sample_of(cohort, features[name], extractors) for name, cohort in used.items()}
    tried = material_of(samples, extractors, folder / "defects", settings.sanity, seed)
    trials = trials_of(encoders, tried)
    missing = [{"name": f"scores on {name}", "reason": reason} for name, reason in (untaught | unused).items()]
    metrics = {name: metric for name, metric in metrics.items() if metric.features not in untaught}

    remembered = _memory(folder / "scores.json", [str(settings), str(seed), *(cohort.digest for cohort in used.values())])
    written = {name: f"{metric} of {code_of(metric)}" for name, metric in metrics.items()}  # a metric may be the user's own

    def scored(name: str, other: Mapping[str, Sample], permutations: int = 0, *, of: str = "synthetic") -> Score:
        asked = metrics[name].features
        looks = [identity(extractors[space]) for space in encoders.get(asked, [asked]) if space in extractors]
        return Score(**remembered(f"{of}: {name} by {written[name]} on {looks}", lambda: anew(name, other, permutations).as_json()))

    def anew(name: str, other: Mapping[str, Sample], permutations: int) -> Score:
        def seen(space: str, subsamples: int, permutations: int) -> Score:
            three = (through(other[split], metric.features, space) if space in trials else other[split] for split in SPLITS)
            return score(name, metric, *three, seed=own, subsamples=subsamples, permutations=permutations)

        metric, own = metrics[name], seed_for(seed, "metric", name)
        if metric.features not in encoders:
            return seen(metric.features, settings.subsamples, permutations)
        each = {space: seen(space, 2, 0) for space in encoders[metric.features]}  # for their values
        return told(middle(each, trials), seen(middle(each, trials), settings.subsamples, permutations), each, trials)

    scores = [scored(name, samples, settings.permutations) for name in tqdm(metrics, desc="evaluate", unit="metric")]
    stand_ins = _stand_ins(samples, extractors, folder, seed)
    if not stand_ins:
        missing.append({"name": "baselines", "reason": "there are fewer than two training cases or no synthetic ones"})
    on_features = [name for name, metric in metrics.items() if metric.features]
    rivals = [
        {"baseline": baseline, **scored(name, {**samples, "synthetic": sample}, of=baseline).as_json()}
        for baseline, sample in stand_ins.items()
        for name in tqdm(on_features, desc=f"evaluate: {baseline}", unit="metric")
    ]
    scores += _likelihoods(run, used, samples, settings.likelihood, settings.likelihood_steps, settings.subsamples, seed)
    if not settings.likelihood:
        missing.append({"name": "likelihood", "reason": "not asked for: evaluate.likelihood=0"})
    badges = []
    if settings.sanity == "off":
        missing.append({"name": "what each score can see", "reason": "not asked for: evaluate.sanity=off"})
    elif isinstance(tried, str):
        missing.append({"name": "what each score can see", "reason": tried})
    else:
        passed = {name: [space for space in each if trials[space].passed] or [*each] for name, each in encoders.items()}
        all_seen = [identity(extractor) for extractor in extractors.values()]
        badges = remembered(f"sanity: {written} on {all_seen}", lambda: sanity.badges(metrics, tried, passed, settings.sanity))
    groups = []
    for group, part in tqdm(_groups(samples, real, metrics, missing).items(), desc="evaluate: classes", unit="class"):
        subjects = min(sample.n_subjects for name, sample in part.items() if name != "synthetic")
        groups += [replace(scored(name, part, of=group), group=group).as_json() | {"subjects_real": subjects} for name in on_features]

    _drawn(samples, scores, folder / "figures")
    counts = {
        name: {"cases": len(cohorts[name]), "subjects": len(set(cohorts[name].subjects)), "cases_used": len(used[name])} for name in cohorts
    }
    result = {
        "unit": real.header.unit,
        "n": counts,
        "features": {name: identity(extractor) for name, extractor in extractors.items()},
        "scores": [row.as_json() for row in scores],
        "baselines": rivals,
        "groups": groups,
        "sanity": badges,
        "qualified": {space: {"passed": trial.passed, "reason": trial.reason, **trial.told} for space, trial in trials.items()},
        "not_computed": missing,
        "seed": seed,
    }
    _write(folder / "metrics.json", json.dumps(validated(rounded(result)), indent=1, sort_keys=True, allow_nan=False) + "\n")
    for name in ("holdout", "synthetic"):
        run.tracker.dataset(name, cohorts[name].digest, len(cohorts[name]), "evaluation")
    run.tracker.metrics({key: value for row in scores for key, value in _tracked(row).items()}, model=weights_of(run.root))
    run.tracker.table("scores", [{name: value for name, value in row.items() if name != "details"} for row in result["scores"]])


def taught(run: Run, folder: Path) -> tuple[dict[str, dict[str, Encoder]], dict[str, str]]:
    """The feature spaces that are learned from the training cases, and for those that are not the reason. They are kept in ``folder``."""
    seed, asked = _seed(run), {metric.features for metric in run.objects["metric"].values()}
    train = _used(Cohort.read(run.folder("prepare") / "cohort.jsonl").split("train"), seed)
    return spaces.learned(asked, train, run.settings.evaluate.encoder_steps, folder / "encoders", seed=seed)


def _seed(run: Run) -> int:
    own = run.settings.evaluate.seed
    return seed_for(run.settings.run.seed if own is None else own, "evaluate")


def _used(cohort: Cohort, seed: int) -> Cohort:
    """The cases that take part, from as many subjects as possible."""
    return cohort.where(cohort.cases[i] for i in spread(cohort.subjects, MOST, seed=seed))


def _drawn(samples: Mapping[str, Sample], scores: Sequence[Score], folder: Path) -> None:
    """Every figure that there are enough cases for."""
    folder.mkdir(exist_ok=True)
    if all(len(sample) for sample in samples.values()):
        figures.intensity_histograms(samples, folder / "intensity.png")
        figures.power_spectra(samples, folder / "power_spectrum.png")
    if all(sample.masks is not None and sample.n_subjects >= PEOPLE for sample in samples.values()):
        figures.structures(samples, folder / "structures.png")
        figures.tissue_histograms(samples, _common(samples), folder / "intensity_tissues.png")
    if any(row.status == "ok" for row in scores):
        figures.forest(scores, folder / "scores.png")


def _comparable(real: Cohort, synthetic: Cohort) -> None:
    if real.header.shape != synthetic.header.shape:
        raise MedsynthError(
            f"evaluate: the synthetic images are {synthetic.header.shape} voxels, the real ones {real.header.shape}. "
            "They can only be compared on one grid; sample again from a model of this run."
        )


def _features(cohorts: Mapping[str, Cohort], extractors: Mapping[str, Extractor], path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Cohort to extractor to features, from ``path`` if it was made of the same cases by the same extractors."""

    def made() -> dict[str, np.ndarray]:
        found = {f"{name}/{key}": extract(extractor, cohort) for key, cohort in cohorts.items() for name, extractor in extractors.items()}
        return found | {f"cases/{key}": np.array([case.id for case in cohort]) for key, cohort in cohorts.items()}

    kept = cached(path, [*map(identity, extractors.values()), *(cohort.digest for cohort in cohorts.values())], made)
    return {key: {name: kept[f"{name}/{key}"] for name in extractors} for key in cohorts}


def material_of(samples: Mapping[str, Sample], extractors: Mapping[str, Extractor], folder: Path, level: str, seed: int) -> Material | str:
    """Held-out cases into which defects can be put, or the reason why there are too few. The spoilt images' features are kept."""
    subjects = min(samples[name].n_subjects for name in ("train", "holdout"))
    if subjects < sanity.FEWEST:
        return f"it takes {sanity.FEWEST} training and {sanity.FEWEST} held-out subjects; there are {subjects}"

    def described(what: str, images: np.ndarray) -> dict[str, np.ndarray]:
        made_from = [*map(identity, extractors.values()), sha256_of(images.tobytes())]
        folder.mkdir(exist_ok=True)
        return cached(folder / f"{what}.npz", made_from, lambda: {name: extractor(images) for name, extractor in extractors.items()})

    cases = sanity.cases_of(level, int(np.prod(samples["train"].images.shape[2:])))
    return material(samples["train"], samples["holdout"], cases, described, seed=seed_for(seed, "sanity"))


def trials_of(encoders: Mapping[str, Mapping[str, Extractor]], tried: Material | str) -> dict[str, Qualified]:
    """Whether each seed of the learned spaces counts; none does where there is nothing to try it on."""
    if isinstance(tried, str):
        return {space: Qualified(passed=False, reason=tried, told={}) for each in encoders.values() for space in each}
    return spaces.qualified(encoders, tried)


def cached(path: Path, made_from: Sequence[str], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays that cost time, from ``path`` if they were made from the same by the same version."""
    key = "\n".join([code_of(), *made_from])
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["made_from"]) == key:
                return {name: kept[name] for name in kept.files if name != "made_from"}
    found = make()
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, made_from=np.array(key), **found)
    partial.replace(path)
    return found


def _memory(path: Path, made_from: Sequence[str]) -> Callable[[str, Callable[[], Any]], Any]:
    """What costs time, by its name: from ``path`` if the same version found it from the same. Kept at once, so that an interrupted run goes
    on there."""
    key = sha256_of("\n".join([code_of(), *made_from]).encode())
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = known["found"] if known.get("made_from") == key else {}

    def remembered(name: str, make: Callable[[], Any]) -> Any:
        if name not in found:
            found[name] = make()
            _write(path, json.dumps({"made_from": key, "found": found}))
        return found[name]

    return remembered


def sample_of(cohort: Cohort, features: Mapping[str, np.ndarray], extractors: Mapping[str, Extractor]) -> Sample:
    """A cohort as the metrics see it, with its masks where every case has one."""
    masked = len(cohort) > 0 and all(case.mask is not None for case in cohort)
    return Sample(
        images=cohort.images(),
        features=features,
        subjects=cohort.subjects,
        spacing=cohort.header.spacing[: cohort.header.dims],
        conditions=[case.condition for case in cohort],
        masks=np.stack([cohort.mask(case) for case in cohort]) if masked else None,
        names=_names(extractors),
    )


def _names(extractors: Mapping[str, Extractor]) -> dict[str, Sequence[str]]:
    return {name: extractor.names for name, extractor in extractors.items() if isinstance(extractor, Texture)}


def _stand_ins(samples: Mapping[str, Sample], extractors: Mapping[str, Extractor], path: Path, seed: int) -> dict[str, Sample]:
    """Cohorts that need no model, as large as the synthetic one: blurred training cases, and draws from a Gaussian fitted to them. Their
    features are kept at ``path``; their images are not, since only features are scored."""
    train = samples["train"]
    size = min(len(train), len(samples["synthetic"]))
    if len(train) < 2 or not size:
        return {}
    copied = train.take(spread(train.subjects, size, seed=seed))
    copies = [f"blurred {subject}" for subject in copied.subjects]  # as a generator that copies would call them
    found = {}
    for name, make, subjects, conditions in (
        ("blurred", lambda: baselines.blurred(copied.images, train.spacing), copies, copied.conditions),
        ("gaussian", lambda: baselines.gaussian(train.images, size, seed=seed), [str(i) for i in range(size)], ()),
    ):
        images = make()
        made_from = [*map(identity, extractors.values()), sha256_of(images.tobytes())]
        features = cached(path / f"{name}.npz", made_from, lambda images=images: {key: each(images) for key, each in extractors.items()})
        found[name] = Sample(
            images=images[:0].copy(), features=features, subjects=subjects, spacing=train.spacing, conditions=conditions, names=train.names
        )
    return found


def _likelihoods(
    run: Run, cohorts: Mapping[str, Cohort], samples: Mapping[str, Sample], cases: int, steps: int, subsamples: int, seed: int
) -> list[Score]:
    """Rows of the model's own costs, of at most so many cases of each cohort."""
    if not cases:
        return []
    rows = {name: spread(sample.subjects, cases, seed=seed) for name, sample in samples.items()}
    found, floor = likelihood.costs(
        run, {name: cohorts[name].where(cohorts[name].cases[i] for i in rows[name]) for name in rows}, steps, seed
    )
    few = [replace(samples[name].take(rows[name]), features={LikelihoodGap.features: found[name]}) for name in SPLITS]
    metrics = {name: LikelihoodGap(column=column, floor=floor) for column, name in enumerate(likelihood.NAMES)}
    return [score(name, metric, *few, seed=seed_for(seed, name), subsamples=subsamples, permutations=0) for name, metric in metrics.items()]


def _groups(
    samples: Mapping[str, Sample], real: Cohort, metrics: Mapping[str, Metric], missing: list[dict[str, str]]
) -> dict[str, dict[str, Sample]]:
    """The samples of each class with enough subjects on every side; the others are named in ``missing``."""
    least = max((metric.least for metric in metrics.values() if metric.features), default=0)
    found = {}
    for attribute in real.header.conditions.attributes if least else ():
        small = []
        for value in attribute.values:
            part = {name: sample.take(_having(sample, attribute.name, value)) for name, sample in samples.items()}
            if min(sample.n_subjects for sample in part.values()) >= least:
                found[f"{attribute.name}={value}"] = part
            else:
                small.append(value)
        if small:
            reason = f"fewer than {least} subjects on one side: {', '.join(small)}"
            missing.append({"name": f"scores by {attribute.name}", "reason": reason})
    return found


def _common(samples: Mapping[str, Sample]) -> list[int]:
    """Labels that at least `PEOPLE` people of each real cohort have, 0 among them."""
    return [
        int(label)
        for label in np.unique(samples["train"].masks)
        if all(
            len({who for who, mask in zip(samples[name].subjects, samples[name].masks, strict=True) if (mask == label).any()}) >= PEOPLE
            for name in ("train", "holdout")
        )
    ]


def _having(sample: Sample, name: str, value: str) -> np.ndarray:
    return np.array([i for i, condition in enumerate(sample.conditions) if str(condition.get(name)) == value], int)


def _tracked(row: Score) -> dict[str, float]:
    key = f"{row.name}/{row.features or 'image'}"
    values = {"": row.value, "/anchor": row.anchor, "/p": row.p}
    if row.interval:
        values |= {"/ci_lo": row.interval[0], "/ci_hi": row.interval[1]}
    return {key + end: value for end, value in values.items() if value is not None}


def rounded(value: object) -> object:
    """Nine significant digits: further ones depend on how many threads a matrix product had."""
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
