"""Learned features: training that teaches something, the same numbers from a seed, and a case described by itself alone."""

import numpy as np
import pytest
import torch

from medsynth.encoder import Encoder, Learner, moved
from medsynth.features import identity
from medsynth.rng import generator_for
from tests.make_cohort import blobs

SUBJECTS = [str(i) for i in range(48)]


def images_of(shape: tuple[int, ...], split: str) -> np.ndarray:
    """What all have in common is strong, and what they differ in weak."""
    return np.stack([0.9 * blobs(shape, 0, "all")[0] + 0.1 * blobs(shape, 0, f"{split}{i}")[0] for i in range(len(SUBJECTS))])[:, None]


def known_again(encoder: Encoder, images: np.ndarray) -> float:
    there = moved(torch.from_numpy(images), generator_for(0, "views")).numpy()
    mean = encoder(images).mean(axis=0)
    unit = [(f - mean) / np.linalg.norm(f - mean, axis=1, keepdims=True) for f in (encoder(there), encoder(images))]
    return float(((unit[0] @ unit[1].T).argmax(axis=1) == np.arange(len(images))).mean())


@pytest.mark.parametrize("shape", [(24, 24), (16, 16, 16)])
def test_an_encoder_learns_to_know_unseen_images_again(shape):
    train, other = images_of(shape, "train"), images_of(shape, "other")
    short, long = (known_again(Learner(steps=steps).fit(train, SUBJECTS, "train"), other) for steps in (1, 120))
    assert long > short + 0.1, (short, long)


def test_classes_are_learned_by_name():
    images = np.stack([blobs((24, 24), 0, f"train{i}")[0] for i in range(len(SUBJECTS))])[:, None]
    classes = (images.mean(axis=(1, 2, 3)) > np.median(images.mean(axis=(1, 2, 3)))).astype(int)
    features = Learner(steps=60, classes="class").fit(images, SUBJECTS, "train", classes)(images)
    direction = features[classes == 1].mean(axis=0) - features[classes == 0].mean(axis=0)
    assert np.mean((features @ direction > np.median(features @ direction)) == classes) > 0.9


def test_seeds_differ_and_one_seed_gives_the_same_weights():
    images = images_of((16, 16), "train")
    one, again, other = (Learner(steps=3, seed=seed).fit(images, SUBJECTS, "train") for seed in (0, 0, 1))
    assert (one(images) == again(images)).all()
    assert not np.allclose(one(images), other(images))


def test_a_case_is_described_by_itself():
    images = images_of((16, 16), "train")
    encoder = Learner(steps=2).fit(images, SUBJECTS, "train")
    assert (encoder(images[:3]) == np.concatenate([encoder(images[i : i + 1]) for i in range(3)])).all()
    assert encoder(images[:0]).shape == (0, 128)


def test_an_encoder_is_known_by_settings_and_training_cases_and_comes_back_from_its_weights():
    images = images_of((16, 16), "train")
    learner = Learner(steps=2)
    encoder = learner.fit(images, SUBJECTS, "these")
    back = learner.loaded(encoder.network.state_dict(), 2, "these")
    assert (back(images) == encoder(images)).all()
    assert identity(back) == identity(encoder)
    assert identity(encoder) != identity(learner.loaded(encoder.network.state_dict(), 2, "others"))
    assert "Conv" not in identity(encoder)
