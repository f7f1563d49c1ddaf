"""The denoiser: a network and a process, together ``(x, sigma) -> x_hat``. All that is above it knows neither."""

from torch import Tensor, nn

from medsynth.diffusion.process import Process


class Denoiser(nn.Module):
    """``network(c_in * x, c_noise, condition)`` between a process' scalings.

    The scalings stay in the precision of ``x``, also where the network runs under autocast: at high noise the image is the small difference
    of two large numbers.
    """

    def __init__(self, network: nn.Module, process: Process) -> None:
        super().__init__()
        self.network = network
        self.process = process

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Expected image given ``x = image + sigma * noise``, both ``(n, channel, *space)``.

        ``sigma`` is ``(n,)``, ``condition`` ``(n, size)`` or None.
        """
        c_skip, c_out, c_in, c_noise = self.process.scalings(sigma)
        output = self.network(_per_case(c_in, x) * x, c_noise, condition)
        return _per_case(c_skip, x) * x + _per_case(c_out, x) * output.to(x.dtype)

    def loss(self, x: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Weighted squared error of each case ``(n,)``, averaged over its pixels. The mean over cases is what training lowers."""
        denoised = self(x + _per_case(sigma, x) * noise, sigma, condition)
        return self.process.weight(sigma) * (denoised - x).square().flatten(1).mean(1)


def _per_case(scalar: Tensor, x: Tensor) -> Tensor:
    return scalar.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
