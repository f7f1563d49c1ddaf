"""Processes against what their papers say the network predicts."""

import pytest
import torch

from medsynth.diffusion.process import EDM, RectifiedFlow, VariancePreserving, stratified
from medsynth.errors import SettingsError

SIGMA = torch.logspace(-2, 1.9, 40, dtype=torch.float64)
IMAGE, NOISE = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def output(process):
    """What a perfect network gives for IMAGE + SIGMA * NOISE."""
    c_skip, c_out, _, _ = process.scalings(SIGMA)
    return (IMAGE - c_skip * (IMAGE + SIGMA * NOISE)) / c_out


def test_variance_preserving_networks_predict_noise_image_or_v():
    alpha = 1 / (1 + SIGMA**2).sqrt()
    truth = {"eps": NOISE, "x0": IMAGE, "v": alpha * NOISE - SIGMA * alpha * IMAGE}
    for prediction, expected in truth.items():
        torch.testing.assert_close(output(VariancePreserving(prediction=prediction)), expected, rtol=1e-8, atol=1e-8)


def test_a_flow_network_predicts_the_velocity_of_the_straight_path():
    torch.testing.assert_close(output(RectifiedFlow()), NOISE - IMAGE)
    time = SIGMA / (1 + SIGMA)
    c_in, c_noise = RectifiedFlow().scalings(SIGMA)[2:]
    torch.testing.assert_close(c_in * (IMAGE + SIGMA * NOISE), (1 - time) * IMAGE + time * NOISE)
    torch.testing.assert_close(c_noise, time)


def test_edm_gives_input_and_target_the_variance_one():
    """Karras et al. 2022, Appendix B.6, for data of the standard deviation that was set."""
    process = EDM(sigma_data=0.3)
    c_skip, c_out, c_in, c_noise = process.scalings(SIGMA)
    torch.testing.assert_close(c_in**2 * (0.3**2 + SIGMA**2), torch.ones_like(SIGMA))
    torch.testing.assert_close(((1 - c_skip) ** 2 * 0.3**2 + c_skip**2 * SIGMA**2) / c_out**2, torch.ones_like(SIGMA))
    torch.testing.assert_close(c_noise, SIGMA.log() / 4)


def test_edm_draws_log_normal_levels():
    log = EDM(p_mean=-1.0, p_std=0.7).draw_sigma(10_000, torch.Generator().manual_seed(0)).log()
    assert log.mean().item() == pytest.approx(-1.0, abs=0.01)
    assert log.std().item() == pytest.approx(0.7, abs=0.01)


def test_flow_times_are_uniform():
    sigma = RectifiedFlow().draw_sigma(10_000, torch.Generator().manual_seed(0)).double()
    time = (sigma / (1 + sigma)).sort().values
    torch.testing.assert_close(time, torch.linspace(0.01 / 1.01, 80 / 81, 10_000, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_batch_has_one_level_in_every_part_of_the_distribution():
    for seed in range(20):
        drawn = stratified(16, torch.Generator().manual_seed(seed))
        assert (drawn * 16).floor().sort().values.tolist() == list(range(16))


def test_an_unknown_prediction_is_an_error():
    with pytest.raises(SettingsError, match="epsilon"):
        VariancePreserving(prediction="epsilon")
