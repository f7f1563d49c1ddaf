"""DP-SGD: the noise is there, nobody moves the sum by more than the clipping norm, and epsilon is what the mathematics says."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import norm
from torch import nn

from medsynth.data.loader import Layout, Rows, SubjectSampler
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.process import EDM
from medsynth.errors import SettingsError
from medsynth.stages import Run, train
from medsynth.training.privacy import Budget, DifferentialPrivacy, PrivateModule
from tests.killed import FIT
from tests.make_cohort import make_cohort
from tests.make_run import TINY, make_run

pytest.importorskip("opacus", reason="the extra dp is not installed")

CASES, BATCH = 7, 4.0


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    cohort = make_cohort(tmp_path_factory.mktemp("cohort"), CASES, 2, 2, shape=(8, 8), conditions={"class": ["a", "b"]})
    return Rows(cohort.split("train"))


def module(rows: Rows, *, noise: float = 0.0, clip: float = 1e9, lr: float = 0.1, secret: int = 5) -> PrivateModule:
    torch.manual_seed(0)
    network = TINY.build(dims=2, channels=1, condition_size=rows.cohort.header.conditions.size)
    for parameter in network.parameters():  # the last convolution starts at zero, and would hide every gradient but its own
        parameter.data += 0.05 * torch.randn_like(parameter)
    budget = Budget(noise=noise, rate=0.5, delta=1e-3, clip=clip, records=CASES)
    settings = {"layout": Layout(global_batch=int(BATCH)), "seed": 3, "warmup": 4, "clip": 0.0, "dropout": 0.3, "flips": (0,)}
    return PrivateModule(Denoiser(network, EDM()), partial(torch.optim.Adam, lr=lr), budget=budget, secret=secret, **settings)


def batch_of(rows: Rows, numbers: list[int], step: int = 5) -> dict:
    return rows.batch(np.array(numbers, dtype=int)) | {"step": step, "rows": numbers}


def gradient(model: PrivateModule, batch: dict) -> list[torch.Tensor]:
    model.zero_grad()
    model.training_step(batch, 0).backward()
    return [parameter.grad.clone() for parameter in model.denoiser.parameters()]


def flat(tensors) -> torch.Tensor:
    return torch.cat([each.flatten() for each in tensors])


def test_without_noise_and_clipping_it_is_the_plain_step(rows: Rows):
    model, batch = module(rows), batch_of(rows, [0, 2, 3, 6, 5])
    private = gradient(model, batch)
    x, condition, sigma, noise = model.draw(batch)
    model.zero_grad()
    (model.denoiser.loss(x, sigma, noise, condition).sum() / BATCH).backward()
    for mine, plain in zip(private, model.denoiser.parameters(), strict=True):
        torch.testing.assert_close(mine, plain.grad, rtol=1e-4, atol=1e-6)


def test_each_record_is_clipped_as_the_slow_path_clips_it(rows: Rows):
    model, batch = module(rows, clip=0.5), batch_of(rows, [1, 4, 6])
    private = flat(gradient(model, batch))
    slow = torch.zeros_like(private)
    for number in (1, 4, 6):
        x, condition, sigma, noise = model.draw(batch_of(rows, [number]))
        one = flat(torch.autograd.grad(model.denoiser.loss(x, sigma, noise, condition).sum(), list(model.denoiser.parameters())))
        assert one.norm() > 0.5, "nothing to clip"
        slow += one * (0.5 / one.norm())
    torch.testing.assert_close(private, slow / BATCH, rtol=1e-4, atol=1e-6)


def test_one_record_more_moves_the_sum_by_the_clipping_norm_at_most(rows: Rows):
    """With noise levels spread over the batch one record would change the levels, and so the gradients, of all others."""
    model = module(rows, clip=0.5)
    with_it, without = (flat(gradient(model, batch_of(rows, numbers))) for numbers in ([0, 1, 2, 3, 5], [0, 2, 3, 5]))
    assert 0.49 < BATCH * (with_it - without).norm() < 0.5 + 1e-4


def test_a_step_that_draws_nobody_is_noise_alone(rows: Rows):
    model = module(rows, noise=2.0, clip=0.5)
    assert flat(gradient(model, batch_of(rows, []))).norm() == 0
    model.configure_gradient_clipping(None)
    noise = flat(parameter.grad for parameter in model.denoiser.parameters())
    assert noise.std() == pytest.approx(2.0 * 0.5 / BATCH, rel=4 / math.sqrt(2 * len(noise)))
    assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(len(noise))


def test_the_noise_is_the_secrets_and_the_steps(rows: Rows, monkeypatch):
    def noise(secret: int, step: int) -> torch.Tensor:
        model = module(rows, noise=1.0, secret=secret)
        monkeypatch.setattr(PrivateModule, "global_step", step)
        gradient(model, batch_of(rows, []))
        model.configure_gradient_clipping(None)
        return flat(parameter.grad for parameter in model.denoiser.parameters())

    first = noise(5, 0)
    assert torch.equal(first, noise(5, 0))
    for other in (noise(6, 0), noise(5, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / math.sqrt(len(first))


def test_a_huge_noise_destroys_learning_and_none_does_not(rows: Rows):
    def learned(noise: float) -> float:
        model = module(rows, noise=noise, clip=1.0, lr=3e-3)
        optimizer = model.configure_optimizers()["optimizer"]
        losses = []
        for step in range(60):
            batch = batch_of(rows, [(step + k) % CASES for k in range(4)], step)
            gradient(model, batch)
            losses.append(float(model.step_loss))
            model.configure_gradient_clipping(None)
            model.step_loss = None
            optimizer.step()
        return np.mean(losses[-15:]) / np.mean(losses[:15])

    assert learned(0.0) < 0.8
    assert learned(1000.0) > 1.0


def exact_delta(epsilon: float, sigma: float) -> float:
    """Of the Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, Theorem 8)."""
    return norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (8.0, 16)])
def test_epsilon_is_the_gaussian_mechanisms_where_everybody_is_drawn(noise: float, steps: int):
    """Steps of noise sigma are one of sigma over their root."""
    epsilon = Budget(noise=noise, rate=1.0, delta=1e-4, clip=1.0, records=100).spent(steps)
    assert exact_delta(epsilon, noise / math.sqrt(steps)) == pytest.approx(1e-4, rel=0.1)


def test_the_planned_noise_keeps_the_promise_and_little_more():
    promise = DifferentialPrivacy(epsilon=3.0)
    budget = promise.budget(records=500, batch=16, steps=300)
    assert 2.9 < budget.spent(300) <= 3.0
    assert budget.spent(150) < budget.spent(300) < budget.spent(600)
    assert budget.delta == pytest.approx(1 / 5000)
    from opacus.accountants import RDPAccountant

    rdp = RDPAccountant()
    rdp.history = [(budget.noise, 16 / 500, 300)]
    assert budget.spent(300) <= rdp.get_epsilon(budget.delta) < 1.3 * budget.spent(300)  # a looser bound of the same


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({"delta": 0.01}, {"records": 100, "batch": 4, "steps": 10}, "below one over the number"),
        ({}, {"records": 8, "batch": 16, "steps": 10}, "more than the 8 training subjects"),
    ],
)
def test_promises_that_say_nothing_are_refused(settings: dict, asked: dict, message: str):
    with pytest.raises(SettingsError, match=message):
        DifferentialPrivacy(**settings).budget(**asked)


def test_a_network_that_mixes_cases_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
    settings = {"layout": Layout(global_batch=4), "seed": 0, "warmup": 1, "clip": 1.0, "dropout": 0.0, "flips": ()}
    budget = Budget(noise=1.0, rate=0.1, delta=1e-3, clip=1.0, records=10)
    with pytest.raises(SettingsError, match=r"privacy=dp: 1 layers.*BatchNorm"):
        PrivateModule(Denoiser(network, EDM()), None, budget=budget, secret=0, **settings)


def test_subjects_are_drawn_with_one_chance_and_once_however_many_cases_they_have():
    subjects = [f"s{k % 20}" for k in range(25)] + ["s3"] * 15
    sampler = SubjectSampler(subjects=subjects, layout=Layout(global_batch=5, device_batch=2), rank=0, secret=9, first=lambda: 0)
    counts, sizes, chosen = np.zeros(20), [], set()
    parts = iter(sampler)
    for _ in range(1200):
        step = [next(parts) for _ in range(3)]
        assert [part.last for part in step] == [False, False, True]
        drawn = [row for part in step for row in part.rows]
        assert len(drawn) == len(set(drawn))
        sizes.append(len(drawn))
        for part in step:
            for row, index in zip(part.rows, part.indices, strict=True):
                assert subjects[index] == sorted(set(subjects))[row]
                chosen.add(int(index))
                counts[row] += 1
    assert chosen == set(range(40))
    assert abs(counts / 1200 - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 1200)
    assert np.var(sizes) == pytest.approx(20 * 0.25 * 0.75, rel=0.2)  # binomial: no batch of a fixed size


def trained(root: Path, **fit) -> Path:
    run = make_run(root, fit=FIT | fit)
    run.settings.paths.key = str(root.parent / "key")
    objects = {**run.objects, "privacy": DifferentialPrivacy(epsilon=5.0, clip=0.5)}
    train.work(Run(settings=run.settings, objects=objects, root=root, tracker=run.tracker), root / "train")
    return root / "train"


def test_a_private_run_states_its_promise_resumes_to_the_same_bytes_and_cannot_be_stretched(tmp_path: Path):
    root = tmp_path / "run"
    make_cohort(root / "prepare", n_train=20, n_validation=3, n_holdout=2, shape=(8, 8), images_per_subject=2)
    folder = trained(root)
    told = yaml.safe_load((folder / "denoiser/denoiser.yaml").read_text())["description"]["privacy"]
    assert 4.5 < told["epsilon"] <= 5.0
    assert (told["record"], told["records"], told["delta"], told["steps"]) == ("subject", 10, 0.01, FIT["steps"])
    weights = (folder / "denoiser/weights.safetensors").read_bytes()

    newest = max((folder / "checkpoints").glob("step-*.ckpt"))
    newest.unlink()
    assert list((folder / "checkpoints").glob("step-*.ckpt")), "nothing to resume from"
    assert (trained(root) / "denoiser/weights.safetensors").read_bytes() == weights
    with pytest.raises(SettingsError, match="cannot be stretched"):
        trained(root, steps=FIT["steps"] + 10)
