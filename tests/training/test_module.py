from functools import partial

import pytest
import torch

from medsynth.data.loader import Layout, Rows, step_indices
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.process import EDM
from medsynth.errors import TrainingDiverged
from medsynth.training.module import DiffusionModule
from tests.make_cohort import make_cohort
from tests.make_run import TINY

CASES, SEED = 7, 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    cohort = make_cohort(tmp_path_factory.mktemp("cohort"), CASES, 2, 2, shape=(8, 8), conditions={"class": ["a", "b"]})
    return Rows(cohort.split("train"))


def module(rows: Rows, *, world_size: int = 1, device_batch: int | None = None, dropout: float = 0.3, flips=(0, 1), clip=1.0, batch=6):
    torch.manual_seed(0)
    network = TINY.build(dims=2, channels=1, condition_size=rows.cohort.header.conditions.size)
    for parameter in network.parameters():  # the last convolution starts at zero, and would hide every gradient but its own
        parameter.data += 0.05 * torch.randn_like(parameter)
    layout = Layout(global_batch=batch, world_size=world_size, device_batch=device_batch)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    settings = {"seed": SEED, "warmup": 4, "clip": clip, "dropout": dropout, "flips": flips}
    return DiffusionModule(Denoiser(network, EDM()), optimizer, layout=layout, **settings)


def batch_of(rows: Rows, layout: Layout, part: int, step: int = 5) -> dict:
    chosen = layout.rows(part)
    indices = step_indices(step, cases=CASES, global_batch=layout.global_batch, seed=SEED)[chosen.start : chosen.stop]
    return rows.batch(indices) | {"step": step, "rows": list(chosen)}


def gradient(rows: Rows, **settings) -> list[torch.Tensor]:
    """What Lightning and DDP make of all parts: losses divided by a rank's parts, gradients averaged over ranks."""
    model = module(rows, **settings)
    layout = model.layout
    for part in range(layout.parts):
        (model.training_step(batch_of(rows, layout, part), 0) / layout.accumulate / layout.world_size).backward()
    return [parameter.grad for parameter in model.denoiser.parameters()]


@pytest.mark.parametrize(("world_size", "device_batch"), [(1, 2), (1, 4), (2, None), (2, 2), (3, 1), (4, None)])
def test_accumulated_and_sharded_gradients_equal_those_of_the_big_batch(rows, world_size, device_batch):
    whole = gradient(rows)
    for mine, theirs in zip(gradient(rows, world_size=world_size, device_batch=device_batch), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_row_draws_the_same_numbers_in_whatever_part_it_lies(rows):
    whole = module(rows)
    expected = whole.draw(batch_of(rows, whole.layout, 0))
    shared = module(rows, world_size=2, device_batch=2)
    parts = [shared.draw(batch_of(rows, shared.layout, part)) for part in range(shared.layout.parts)]
    for one, pieces in zip(expected, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(pieces))


def test_steps_and_rows_draw_different_numbers(rows):
    model = module(rows)
    *_, noise = model.draw(batch_of(rows, model.layout, 0, step=5))
    *_, later = model.draw(batch_of(rows, model.layout, 0, step=6))
    assert len({tuple(row.flatten().tolist()) for row in torch.cat([noise, later])}) == 12


def test_noise_is_standard_normal(rows):
    model = module(rows, batch=64)
    *_, noise = model.draw(batch_of(rows, model.layout, 0))
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 4 / noise.numel() ** 0.5


def test_dropout_takes_the_whole_condition_of_its_share_of_cases(rows):
    model = module(rows, dropout=0.3, batch=2000)
    batch = batch_of(rows, model.layout, 0)
    _, condition, *_ = model.draw(batch)
    dropped = (condition == 0).all(1)
    assert torch.equal(condition[~dropped], batch["condition"][~dropped])
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.04)


def test_flips_mirror_each_axis_of_half_of_the_cases_and_change_nothing_else(rows):
    model = module(rows, flips=(1,), batch=400)
    batch = batch_of(rows, model.layout, 0)
    x, *_ = model.draw(batch)
    same = (x == batch["x"]).flatten(1).all(1)
    mirrored = (x == batch["x"].flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)


def test_gradients_are_clipped_to_their_norm_and_keep_their_direction(rows):
    model = module(rows, clip=0.01)
    model.training_step(batch_of(rows, model.layout, 0), 0).backward()
    before = [parameter.grad.clone() for parameter in model.denoiser.parameters()]
    model.trainer = type("Trainer", (), {"global_step": 0})()
    model.configure_gradient_clipping(None)
    after = [parameter.grad for parameter in model.denoiser.parameters()]
    norm = torch.nn.utils.get_total_norm(before)
    assert norm > 0.01
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * 0.01 / norm, rtol=1e-3, atol=0)


def test_the_learning_rate_rises_in_a_line_and_stays(rows):
    model = module(rows)
    made = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_the_guard_names_the_tensor_whose_gradient_is_not_finite(rows):
    model = module(rows)
    model.training_step(batch_of(rows, model.layout, 0), 0).backward()
    name, parameter = list(model.denoiser.named_parameters())[5]
    parameter.grad.view(-1)[3] = float("inf")
    model.trainer = type("Trainer", (), {"global_step": 41})()
    with pytest.raises(TrainingDiverged, match=rf"Step 42: the gradient of {name} is not finite"):
        model.configure_gradient_clipping(None)


def test_the_guard_names_the_weight_behind_a_broken_loss(rows):
    model = module(rows)
    name, parameter = list(model.denoiser.named_parameters())[4]
    parameter.data.view(-1)[0] = float("nan")
    model.training_step(batch_of(rows, model.layout, 0), 0).backward()
    model.trainer = type("Trainer", (), {"global_step": 9})()
    with pytest.raises(TrainingDiverged, match=rf"Step 10: the weight {name} is not finite"):
        model.configure_gradient_clipping(None)


def test_the_guard_finds_the_first_of_several_broken_steps(rows):
    model, fine, broken = module(rows), torch.tensor(1.0), torch.tensor(float("nan"))
    norms = torch.ones(len(list(model.denoiser.parameters())))
    for step, loss in ((7, fine), (8, broken), (9, broken)):
        model.guard.watch(step, loss, norms)
    with pytest.raises(TrainingDiverged, match="Step 8: the loss"):
        model.guard.check()
