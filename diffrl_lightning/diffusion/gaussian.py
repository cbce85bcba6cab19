"""The diffusion process itself: noising, the three parameterisations, the posterior, the loss."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffrl_lightning.diffusion.constraints import Inpaint
from diffrl_lightning.diffusion.noise import randint, randn
from diffrl_lightning.inputs import one_of
from diffrl_lightning.types import DenoiseFn, Generators, InputError

PredictionType = Literal["eps", "x0", "v"]


def rowwise(values: Tensor, ndim: int) -> Tensor:
    """One value (B,) for each row of a batch, or one for all, shaped (B or 1, 1, ...)."""
    return values.view(-1, *(1,) * (ndim - 1))


class GaussianDiffusion(nn.Module):
    """Discrete-time Gaussian diffusion (Ho et al. 2020) over tensors of any shape (B, *S).

    With alpha_t = 1 - beta_t and abar_t = prod_{s<=t} alpha_s::

        q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I)
        q(x_t | x_0)     = N(sqrt(abar_t) x_0,      (1 - abar_t) I)

    Steps are 0-based, and step -1 is the clean sample: abar_{-1} = 1.

    Args:
        betas: (T,) variances of the forward process, each in (0, 1).
        prediction_type: what the network returns: the noise ``eps``, the clean sample ``x0``, or
            ``v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0`` (Salimans & Ho 2022).
    """

    betas: Tensor
    alphas_cumprod: Tensor
    _signal: Tensor
    _noise: Tensor
    _log_abar: Tensor

    def __init__(self, betas: Tensor, prediction_type: PredictionType = "eps") -> None:
        super().__init__()
        one_of(get_args(PredictionType), prediction_type=prediction_type)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError("betas must be one-dimensional with every entry in (0, 1).")
        self.prediction_type = prediction_type
        alphas_cumprod = torch.cumprod(1 - betas.double(), 0)
        # The last entry is the clean sample, so that index -1 finds it.
        padded = torch.cat([alphas_cumprod, alphas_cumprod.new_ones(1)])
        for name, value in (
            ("betas", betas),
            ("alphas_cumprod", alphas_cumprod),
            ("_signal", padded.sqrt()),
            ("_noise", (1 - padded).sqrt()),
            ("_log_abar", padded.log()),
        ):
            self.register_buffer(name, value.float(), persistent=False)

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    def signal_noise(self, t: Tensor | int, ndim: int) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) for steps (B,) or one step, shaped (B or 1, 1, ...)."""
        return rowwise(self._signal[t], ndim), rowwise(self._noise[t], ndim)

    def c_noise(self, t: Tensor) -> Tensor:
        """Noise levels of steps (B,) as EDM's networks see them, log(sigma) / 4 (B,)."""
        signal, noise = self.signal_noise(t, 1)
        return 0.25 * (noise / signal).log()

    def step(self, t: Tensor | int, s: Tensor | int, ndim: int) -> tuple[Tensor, Tensor]:
        """Alpha = abar_t / abar_s and beta = 1 - alpha of the forward step from s to t.

        Each (B or 1, 1, ...), from the logarithm: neither loses digits where it is close to 0.
        """
        log_alpha = rowwise(self._log_abar[t] - self._log_abar[s], ndim)
        return log_alpha.exp(), -torch.expm1(log_alpha)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Draw x_t ~ q(x_t | x_0) with given noise; all (B, *S), t (B,)."""
        signal, noise = self.signal_noise(t, x0.ndim)
        return signal * x0 + noise * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should have returned at x_t, (B, *S)."""
        if self.prediction_type == "eps":
            return eps
        if self.prediction_type == "x0":
            return x0
        signal, noise = self.signal_noise(t, x0.ndim)
        return signal * eps - noise * x0

    def to_x0(self, pred: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean sample that a prediction at x_t stands for, (B, *S)."""
        if self.prediction_type == "x0":
            return pred
        signal, noise = self.signal_noise(t, xt.ndim)
        if self.prediction_type == "eps":
            return (xt - noise * pred) / signal
        return signal * xt - noise * pred

    def posterior(
        self, x0: Tensor, xt: Tensor, t: Tensor | int, s: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, *S) and variance (B, 1, ...) of q(x_s | x_t, x_0), s < t.

        By default s = t - 1 (Ho et al. 2020, eq. 6 and 7); any earlier step gives the posterior
        of the shortened chain that visits only some steps. At s = -1 the variance is exactly 0.
        """
        s = t - 1 if s is None else s
        _, noise_t = self.signal_noise(t, xt.ndim)
        signal_s, noise_s = self.signal_noise(s, xt.ndim)
        alpha, beta = self.step(t, s, xt.ndim)
        ratio = (noise_s / noise_t).square()
        mean = signal_s * beta / noise_t.square() * x0 + alpha.sqrt() * ratio * xt
        return mean, beta * ratio

    def loss(
        self,
        denoise: DenoiseFn,
        x0: Tensor,
        *,
        weight: Tensor | None = None,
        constraint: Inpaint | None = None,
        snr_gamma: float | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Squared error of the prediction at a uniformly drawn step, one value a sample (B,).

        Args:
            denoise: the network with its conditions bound.
            x0: clean samples (B, *S).
            weight: weight of each entry, broadcastable to (B, *S).
            constraint: known entries: the network sees them clean, and they carry no loss (for
                x0-prediction that is the same as overwriting them in its output).
            snr_gamma: weigh steps by min(SNR, snr_gamma), as an error of the clean sample, with SNR =
                abar / (1 - abar) (Hang et al. 2023); default all alike.
            generator: source of the steps and the noise.
        """
        t = randint(self.num_train_timesteps, x0, generator)
        eps = randn(x0.shape, generator=generator, like=x0)
        xt = self.add_noise(x0, eps, t)
        if constraint is not None:
            xt = constraint(xt)
        error = (denoise(xt, t) - self.target(x0, eps, t)).square()
        if snr_gamma is not None:
            error = error * self._snr_weight(t, snr_gamma, x0.ndim)
        if weight is not None:
            error = error * weight
        if constraint is not None:
            error = error.masked_fill(constraint.mask, 0.0)
        return error.flatten(1).mean(1)

    def _snr_weight(self, t: Tensor, gamma: float, ndim: int) -> Tensor:
        """min(SNR, gamma) at steps (B,) for an error of x0, and as much for eps and v: (B, 1, ...)."""
        signal, noise = self.signal_noise(t, ndim)
        snr = (signal / noise).square()
        size = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}
        return snr.clamp(max=gamma) / size[self.prediction_type]
