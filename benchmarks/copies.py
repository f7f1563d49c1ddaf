"""Which copies does the search find? Beside it what others use: plain distance, two published rules, an embedding, and the search's parts.

Copies of training images, of every kind that the audit plants, are looked for among the training images, and so are held-out images that no
model saw. Each detector has one threshold, from one half of the held-out images (split-conformal at alpha); false alarms are counted on the
other half. The two published rules bring a threshold of their own, which is taken as it stands.

* *distance*: Euclidean, to the nearest training image.
* *d1/d2*: the distance to the nearest is below a third of that to the second nearest (Gu et al. 2023, "On memorization").
* *Carlini*: it is below half of the mean distance to the 50 nearest (Carlini et al. 2023, "Extracting training data", section 5.1).
* *embedding*: cosine of the descriptors of `Embedding`, a small network trained on the training images alone.
* *whole*: the audit's search without its two views by pieces. *search*: all of it.

``python -m benchmarks.copies`` writes the tables of all sets of images to results/privacy/; real ones are left out where they are missing.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from benchmarks.small_model import slices
from benchmarks.table import RESULTS, Row, Table, processor, write
from medsynth.audit.memorization import BACKGROUND, TRAIN, on_one_scale
from medsynth.audit.nearest import VIEWS, References, nearest
from medsynth.audit.plants import kinds
from medsynth.audit.rates import clopper_pearson, conformal_threshold
from medsynth.io import nifti
from medsynth.rng import generator_for, seed_for
from tests.make_evidence import images_of

DATA = Path("../shared/data")
CURVE = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
WHOLE = slice(0, VIEWS.index("pieces"))


def main() -> int:
    found = []
    for name, images in SETS.items():
        try:
            found += tables(name, *images(), plants=60, steps=300)
        except FileNotFoundError as missing:
            print(f"{name}: left out, {missing}", file=sys.stderr)
    print("\n".join(table.markdown() for table in found))
    path = write(found, hardware=processor(), conditions={"CPUs": os.cpu_count()}, folder=RESULTS / "privacy", name="copies")
    print(f"written to {path}")
    return 0


def measure(tiny: bool) -> list[Table]:
    training, held_out, size, plants, steps = (12, 12, 16, 2, 2) if tiny else (120, 200, 32, 40, 100)
    return tables("Textured balls", *textures(training, held_out, size), plants=plants, steps=steps)


def textures(training: int, held_out: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of the audit's own tests."""
    return halves(images_of((size, size), [f"subject {i}" for i in range(training + held_out)]), training)


def hippocampus() -> tuple[np.ndarray, np.ndarray]:
    folder = DATA / "hippocampus_mr" / "images"
    paths = sorted(folder.glob("*.nii*"))
    if not paths:
        raise FileNotFoundError(folder)
    volumes = []
    for path in paths:
        array = np.asarray(nifti.read(path)[0], np.float32).squeeze()
        low, high = np.percentile(array, (0.5, 99.5))
        factors = [n / m for n, m in zip((16, 24, 16), array.shape, strict=True)]
        volumes.append(ndimage.zoom(np.clip((array - low) / (high - low) * 2 - 1, -1, 1), factors, order=1, grid_mode=True, mode="nearest"))
    return halves(np.stack(volumes), 100)


def chest() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "chest_xray" / "pneumoniamnist.npz", allow_pickle=False) as arrays:
        images = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.float32) / 127.5 - 1
    return halves(images, 500)


SETS: Mapping[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "Textured balls": lambda: textures(120, 400, 32),
    "Phantom CT slices": lambda: halves(slices(range(3000), 40), 300),
    "Hippocampus MR": hippocampus,
    "Chest X-rays": chest,
}


def halves(images: np.ndarray, training: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images, by chance."""
    images = images[generator_for(0, "split").permutation(len(images))].astype(np.float32)
    return images[:training], images[training:]


def tables(name: str, members: np.ndarray, others: np.ndarray, *, plants: int, steps: int) -> list[Table]:
    """Recall by kind, and the false-alarm curve of the search. A quarter of the held-out images lend what is not copied."""
    lenders, unseen = others[: len(others) // 4], others[len(others) // 4 :]
    copies = planted(members, lenders, plants)
    queries = np.concatenate([unseen, *copies.values()])
    of_unseen = slice(0, len(unseen))
    starts = len(unseen) + plants * np.arange(len(copies))
    parts = {kind: slice(start, start + plants) for kind, start in zip(copies, starts.tolist(), strict=True)}
    free, fixed = detectors(members, queries, steps)
    flags = {title: score > conformal_threshold(score[of_unseen][::2], 0.05)[0] for title, score in free.items()} | fixed
    strict = free["search"] > conformal_threshold(free["search"][of_unseen][::2], 0.01)[0]
    rows: list[Row] = []
    for kind, part in ({"(false alarms)": slice(1, len(unseen), 2)} | parts).items():
        hits = flags["search"][part]
        low, high = clopper_pearson(int(hits.sum()), len(hits))
        rates = {title: f"{flag[part].mean():.1%}" for title, flag in flags.items()}
        rows.append({"kind": kind} | rates | {"95 %": f"{low:.0%} to {high:.0%}", "search, alpha 1 %": f"{strict[part].mean():.1%}"})
    calibration, test = unseen[::2], unseen[1::2]
    shape = "x".join(map(str, members.shape[1:]))
    note = (
        f"{len(members)} training images of {shape}, {plants} copies a kind. Thresholds at 5 % from {len(calibration)} unseen images, "
        f"false alarms on {len(test)} others; d1/d2 and Carlini with their published ones. The embedding was trained for {steps} steps. "
        f"The interval is the search's, of Clopper and Pearson."
    )
    result = [Table(title=f"{name}: share of planted copies found", note=note, rows=rows)]
    curve: list[Row] = []
    scores = free["search"]
    for alpha in CURVE:
        threshold, held = conformal_threshold(scores[of_unseen][::2], alpha)
        if held <= alpha:
            hits = scores[of_unseen][1::2] > threshold
            low, high = clopper_pearson(int(hits.sum()), len(hits))
            found = f"{(scores[len(unseen) :] > threshold).mean():.1%}"
            curve.append(
                {"alpha": f"{alpha:.1%}", "false alarms": f"{hits.mean():.1%}", "95 %": f"{low:.1%} to {high:.1%}", "found": found}
            )
    if curve:
        note = "Found: of the copies of all kinds together. Smaller rates need more unseen images than there are."
        result.append(Table(title=f"{name}: false alarms of the search", note=note, rows=curve))
    return result


def planted(members: np.ndarray, lenders: np.ndarray, count: int) -> Mapping[str, np.ndarray]:
    """Copies of training images by kind, ``(count, *space)`` each."""
    found = {}
    for kind, plant in kinds(members.shape[1:]).items():
        draws = [generator_for(0, kind, number) for number in range(count)]
        rows = generator_for(0, "rows", kind).permutation(len(members))
        copies = [plant(members[rows[i % len(rows)]], lenders[i % len(lenders)], draw) for i, draw in enumerate(draws)]
        found[kind] = np.stack(copies).astype(np.float32)
    return found


def detectors(members: np.ndarray, queries: np.ndarray, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores (higher is nearer) of detectors that need a threshold; flags of those that bring one."""
    flat, known = (images.reshape(len(images), -1).astype(np.float64) for images in (queries, members))
    distance = np.sqrt(np.maximum((flat**2).sum(1)[:, None] + (known**2).sum(1) - 2 * flat @ known.T, 0))
    ordered = np.sort(distance, axis=1)
    embedding = Embedding(members, steps)
    number = np.arange(len(members))
    references = References(images=members, groups=np.full(len(members), TRAIN), subjects=number)
    background = number[:BACKGROUND]
    own = np.concatenate([np.full(len(queries), -1), background])
    matches = nearest(np.concatenate([queries, members[background]]), references, own=own)
    views, last = {"whole": WHOLE, "search": slice(None)}, slice(len(queries), None)
    scores = {title: on_one_scale(matches.score[view], matches.row[view], last)[0][: len(queries), TRAIN] for title, view in views.items()}
    free = {"distance": -ordered[:, 0], "embedding": (embedding(queries) @ embedding(members).T).max(1)} | scores
    return free, {"d1/d2": ordered[:, 0] < ordered[:, 1] / 3, "Carlini": ordered[:, 0] < 0.5 * ordered[:, :50].mean(1)}


class Embedding:
    """A network that tells training images apart through what a copy may have gone through: NT-Xent (Chen et al. 2020, eq. 1).

    Two views of each image of a batch (`augmented`) shall be nearest to each other among all views of the batch, by the cosine of their
    64 numbers at temperature 0.1.
    """

    def __init__(self, images: np.ndarray, steps: int, batch: int = 64) -> None:
        known, generator = torch.from_numpy(images), torch.Generator().manual_seed(seed_for(0, "embedding"))
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(0, "embedding", "weights"))
            self.network = _network(images.shape[1:])
        optimizer = torch.optim.AdamW(self.network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, max(steps, 2))
        for _ in range(steps):
            rows = torch.randperm(len(known), generator=generator)[:batch]
            both = torch.cat([self._described(augmented(known[rows], generator)) for _ in range(2)])
            likeness = (both @ both.T / 0.1).fill_diagonal_(-torch.inf)
            loss = nn.functional.cross_entropy(likeness, torch.arange(len(both)).roll(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return torch.cat([self._described(part) for part in torch.from_numpy(images).split(64)]).numpy()

    def _described(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors ``(image, 64)`` from the image of unit variance and what it has beyond its local mean."""
        axes = tuple(range(1, images.ndim))
        own = ((images - images.mean(axes, keepdim=True)) / (images.std(axes, keepdim=True) + 1e-6))[:, None]
        pool: Callable = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[len(axes)]
        return nn.functional.normalize(self.network(torch.cat([own, 3 * (own - pool(own, 5, 1, 2, count_include_pad=False))], 1)))


def _network(space: tuple[int, ...]) -> nn.Module:
    convolution, pool = {2: (nn.Conv2d, nn.AvgPool2d), 3: (nn.Conv3d, nn.AvgPool3d)}[len(space)]
    layers: list[nn.Module] = []
    for into, out in ((2, 16), (16, 32), (32, 64)):
        layers += [convolution(into, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), pool(2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(64))


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by up to 15 degrees, mirrored, zoomed, moved, warped; then gamma, gain, a mixture with another image, noise."""
    count, dims = len(images), images.ndim - 1

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    matrix = torch.eye(dims).repeat(count, 1, 1)
    for a in range(dims):
        for b in range(a + 1, dims):
            angle, turn = uniform(-0.26, 0.26), torch.eye(dims).repeat(count, 1, 1)
            turn[:, a, a] = turn[:, b, b] = angle.cos()
            turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
            matrix = matrix @ turn
    matrix = matrix * uniform(0.83, 1.13, 1, 1) * torch.where(uniform(0, 1, 1, dims) < 0.25, -1.0, 1.0)
    affine = torch.cat([matrix, uniform(-0.12, 0.12, dims, 1)], 2)
    places = nn.functional.affine_grid(affine, [count, 1, *images.shape[1:]], align_corners=False)
    bend = torch.randn(count, dims, *[6] * dims, generator=generator) * uniform(0, 0.05, *[1] * (dims + 1))
    bend = nn.functional.interpolate(bend, size=images.shape[1:], mode="bilinear" if dims == 2 else "trilinear", align_corners=True)
    moved = nn.functional.grid_sample(images[:, None], places + bend.movedim(1, -1), align_corners=False, padding_mode="border")[:, 0]
    one = [1] * dims
    moved = (2 * ((moved + 1) / 2).clamp(min=1e-3) ** uniform(-0.5, 0.5, *one).exp() - 1) * uniform(0.7, 1.3, *one)
    share = uniform(-0.9, 0.4, *one).clamp(min=0)
    mixed = (1 - share) * moved + share * moved[torch.randperm(count, generator=generator)]
    return mixed + uniform(0, 0.12, *one) * torch.randn(moved.shape, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
