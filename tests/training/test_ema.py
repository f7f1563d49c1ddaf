import pytest
import torch
from torch import nn

from medsynth.training.ema import EMA, new_share


def test_the_first_average_is_the_first_weights_and_the_half_life_is_reached_in_time():
    assert new_share(1, halflife=500) == pytest.approx(1, abs=1e-3)
    assert new_share(10**6, halflife=500) == pytest.approx(1 - 0.5 ** (1 / 500))
    # early on, a share of the steps so far
    assert new_share(100, halflife=500) == pytest.approx(1 - 0.5 ** (1 / 10))


def test_after_a_half_life_the_average_is_half_way_to_constant_weights():
    model, ema, halflife = nn.Linear(3, 2), EMA(halflife=40), 40
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ema.start(model)
    for parameter in model.parameters():
        parameter.data += 1.0
    for step in range(1000, 1000 + halflife):
        ema.update(model, step)
    for name, weight in ema.weights.items():
        torch.testing.assert_close(weight, start[name] + 0.5)


def test_the_average_is_the_weighted_sum_of_all_weights():
    """Closed form: weights w_t count with share(t) times what later shares leave of them."""
    model, ema = nn.Linear(4, 1, bias=False), EMA(halflife=3)
    ema.start(model)
    weights = [torch.randn(1, 4) for _ in range(30)]
    for step, weight in enumerate(weights, start=1):
        model.weight.data = weight
        ema.update(model, step)
    expected, left = torch.zeros(1, 4, dtype=torch.float64), 1.0
    for step in range(30, 0, -1):
        expected += left * new_share(step, 3) * weights[step - 1].double()
        left *= 1 - new_share(step, 3)
    assert left < 1e-3
    torch.testing.assert_close(ema.weights["weight"].double(), expected, rtol=1e-3, atol=1e-3)


def test_a_swap_gives_the_average_and_then_the_own_weights_back_bit_for_bit():
    model, ema = nn.Linear(3, 2), EMA(halflife=3)
    ema.start(model)
    own = [parameter.data for parameter in model.parameters()]
    values = [tensor.add_(1.0).clone() for tensor in own]

    def fail_inside() -> None:
        with ema.swapped(model):
            assert torch.equal(model.weight, ema.weights["weight"])
            model.eval()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert model.training
    for parameter, tensor, value in zip(model.parameters(), own, values, strict=True):
        assert parameter.data.data_ptr() == tensor.data_ptr()
        assert torch.equal(parameter.data, value)
