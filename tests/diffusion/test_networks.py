"""The adapter over MONAI's U-Net: what it adds, and that it changes nothing else."""

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet

from medsynth.diffusion.networks import LABEL_SCALE, UNet, UNetSettings
from medsynth.errors import SettingsError

TINY = UNetSettings(channels=(16, 32, 32), attention_levels=(False, True, True), res_blocks=1, head_channels=16, norm_groups=8)


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """With the convolutions that start at zero set to something, so that every part matters."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)


@pytest.fixture
def conditional() -> UNet:
    torch.manual_seed(0)
    return awake(TINY.build(2, 1, 3))


@pytest.mark.parametrize("shape", [(2, 1, 16, 20), (2, 1, 8, 4, 12)])
def test_the_output_is_that_of_monai_s_network(shape):
    """Same weights under the same names, the label scaled, other attention kernels: same output to rounding."""
    torch.manual_seed(0)
    adapter = awake(TINY.build(len(shape) - 2, 1, 0))
    peer = DiffusionModelUNet(
        spatial_dims=len(shape) - 2,
        in_channels=1,
        out_channels=1,
        channels=TINY.channels,
        attention_levels=TINY.attention_levels,
        num_res_blocks=1,
        num_head_channels=16,
        norm_num_groups=8,
    ).eval()
    peer.load_state_dict(adapter.net.state_dict())
    x, c_noise = inputs(*shape)
    with torch.no_grad():
        ours, theirs = adapter(x, c_noise), peer(x, LABEL_SCALE * c_noise)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * theirs.abs().max().item())
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(adapter(x, c_noise).float(), theirs, rtol=0, atol=0.05 * theirs.abs().max().item())


@pytest.mark.parametrize("shape", [(2, 1, 13, 17), (1, 2, 1, 3), (2, 1, 5, 7, 9), (1, 1, 1, 6, 11)])
def test_any_size_goes_in_and_comes_out(shape):
    network = awake(TINY.build(len(shape) - 2, shape[1], 0))
    with torch.no_grad():
        output = network(*inputs(*shape))
    assert output.shape == shape
    assert output.isfinite().all()


def test_padding_is_zeros_behind_each_axis(conditional):
    x, c_noise = inputs(2, 1, 14, 15)
    padded = torch.zeros(2, 1, 16, 16)
    padded[:, :, :14, :15] = x
    with torch.no_grad():
        torch.testing.assert_close(conditional(x, c_noise), conditional(padded, c_noise)[:, :, :14, :15])


def test_a_condition_changes_the_output_case_by_case(conditional):
    x, c_noise = inputs(2, 1, 16, 16)
    with torch.no_grad():
        without = conditional(x, c_noise, torch.zeros(2, 3))
        with_one = conditional(x, c_noise, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    torch.testing.assert_close(with_one[0], without[0])
    assert (with_one[1] - without[1]).abs().max() > 1e-3


def test_no_condition_is_the_null_condition(conditional):
    x, c_noise = inputs(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(conditional(x, c_noise), conditional(x, c_noise, torch.zeros(2, 3)))


def test_the_noise_level_changes_the_output(conditional):
    x, c_noise = inputs(2, 1, 16, 16)
    with torch.no_grad():
        assert (conditional(x, c_noise) - conditional(x, c_noise + 0.1)).abs().max() > 1e-3


def test_an_untrained_network_gives_zeros_and_all_of_it_learns_in_the_end():
    network = TINY.build(2, 1, 3)
    x, c_noise = inputs(2, 1, 16, 16)
    assert not network(x, c_noise, torch.ones(2, 3)).any()
    awake(network).train()
    network(x, c_noise, torch.ones(2, 3)).square().sum().backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # a key's bias shifts all of a query's scores alike, which softmax ignores
    assert [name for name in idle if not name.endswith("to_k.bias")] == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channels": [32, 64], "attention_levels": [False]}, "attention_levels"),
        ({"channels": [30, 60, 64]}, "norm_groups=32"),
        ({"channels": [32, 32, 96], "head_channels": 64}, "head_channels=64"),
    ],
)
def test_settings_that_do_not_fit_together_are_the_user_s_mistake(settings, named):
    with pytest.raises(SettingsError, match=named):
        UNetSettings(**settings)
