"""Does the utility of a cohort fall with its quality? A classifier of lesions, trained on cohorts that are worse and worse by construction.

People of the phantom hospital are drawn anew for each cohort, so an undegraded one is what a perfect generator would draw. The others are
blurred. All nets take the same number of steps and are tested on the same held-out people.
"""

import time

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.table import Row, Table
from medsynth.data.sources.phantom_anatomy import FIELD_OF_VIEW, image_of, truth
from medsynth.metrics.utility import Doubt, Recipe, Task, outcome, told
from medsynth.rng import seed_for

BLUR = {"real": 0.0, "perfect": 0.0, "mildly degraded": 1.0, "heavily degraded": 4.0}  # voxels, standard deviation


def measure(tiny: bool) -> list[Table]:
    people, held_out, nets, steps, size = (24, 16, 2, 10, 16) if tiny else (200, 400, 5, 150, 28)
    cohorts = [drawn(seed, people, size, blur) for seed, blur in enumerate(BLUR.values(), 1)]
    images, classes = (np.concatenate(parts) for parts in zip(*cohorts, drawn(0, held_out, size, 0.0), strict=True))
    task = Task(kind="classification", images=images, targets=classes, classes=2)
    test = np.arange(len(BLUR) * people, len(images))
    doubt = Doubt.of([str(row) for row in test], classes[test], nets, draws=1000, seed=0)
    rows: list[Row] = []
    for number, name in enumerate(BLUR):
        start, chosen = time.process_time(), np.arange(number * people, (number + 1) * people)
        runs = [outcome(task, chosen, {"test": test}, Recipe(steps=steps), seed=seed_for(0, net))["test"] for net in range(nets)]
        found = told(doubt.drawn(np.stack(runs)))
        low, high = found["interval"]
        seconds = time.process_time() - start
        rows.append({"trained on": name, "balanced accuracy": found["value"], "low": low, "high": high, "CPU s": seconds})
    note = (
        f"{people} people of {FIELD_OF_VIEW:g} mm at {size} x {size} each, lesion or none; {nets} nets of {steps} steps; tested on "
        f"{held_out} other people. Blurs of {BLUR['mildly degraded']} and {BLUR['heavily degraded']} voxels. Intervals are 95 %, over "
        "people and nets."
    )
    return [Table(title="Utility of cohorts of known quality", note=note, rows=rows)]


def drawn(seed: int, people: int, size: int, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle CT slices ``(person, 1, size, size)`` in model units, blurred by so many voxels, and whether each shows a lesion."""
    anatomies = [truth(seed, person) for person in range(people)]
    slices = [
        image_of(anatomy, "CT", size=size, slices=1, thickness=8.0, seed=seed_for(seed, person))[..., 0]
        for person, anatomy in enumerate(anatomies)
    ]
    images = np.clip(np.stack(slices) / 160, -1, 1)[:, None]
    return gaussian_filter(images, (0, 0, blur, blur)).astype(np.float32), np.array([int(anatomy.lesion > 0) for anatomy in anatomies])
