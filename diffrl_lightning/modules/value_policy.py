"""A policy drawn from a diffused value (Mazoure et al. 2023)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from diffrl_lightning.inputs import above, one_of
from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.futures import FutureSampling
from diffrl_lightning.nets import mlp
from diffrl_lightning.normalizers import NormalizerKind, TrajectoryNormalizer
from diffrl_lightning.types import Acting, Generators, InputError, TransitionBatch


class ValuePolicy(DiffusionModule):
    """An MLP from a state to an action that clones the data, good actions more than others.

    The value is a ``DiffusedValue``, frozen, of the same environment; it is needed for training alone::

        extraction regression   exp(A(s, a) / (temperature * std A)) |pi(s) - a|^2
        extraction ascent       |pi(s) - a|^2 - q_weight * r(s_k, pi(s_k)) / mean |r|

    The first is advantage-weighted regression (Peng et al. 2019), with A = Q - V of futures out of the
    same noise. The second is the paper's (Mazoure et al. 2023, eq. 12): it climbs the reward at future
    states, which are drawn and then held fixed, as if they did not depend on the action now.

    Args:
        value_ckpt: checkpoint of the DiffusedValue.
        extraction: ``regression`` or ``ascent``.
        temperature: of the advantages, in their standard deviations in the batch.
        max_weight: bound of a step's weight in the regression, where 1 is that of advantage 0.
        q_weight: weight of the reward in the ascent.
        num_samples: futures of each state in training.
        num_inference_steps: network evaluations of a future in training.
        hidden_dim: width of the network.
        num_layers: hidden layers.
        normalizer: of states; actions are scaled to their range in the data.
        training: keywords of :class:`DiffusionModule`.
    """

    batch_type = TransitionBatch
    acting = Acting

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        value_ckpt: str | None = None,
        extraction: Literal["regression", "ascent"] = "regression",
        temperature: float = 1.0,
        max_weight: float = 20.0,
        q_weight: float = 1.0,
        num_samples: int = 4,
        num_inference_steps: int = 5,
        hidden_dim: int = 256,
        num_layers: int = 2,
        normalizer: NormalizerKind = "gaussian",
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr_schedule=lr_schedule, **training)
        one_of(("regression", "ascent"), extraction=extraction)
        above(0, temperature=temperature)
        self.futures = FutureSampling(
            num_samples=num_samples, num_inference_steps=num_inference_steps
        )
        self.actor = mlp(observation_dim, hidden_dim, action_dim, num_layers=num_layers)
        self.ema = self.average(self.actor)
        self.trajectory = TrajectoryNormalizer(normalizer, observation_dim, action_dim, "limits")
        self.value: list[Any] = []  # in a list, so that it stays out of checkpoints

    def setup(self, stage: str) -> None:
        """Load the value.

        Raises:
            InputError: if it is missing, or does not fit.
        """
        super().setup(stage)
        if stage != "fit":
            return
        path = self.hparams["value_ckpt"]
        if path is None:
            raise InputError("ValuePolicy needs model.value_ckpt, a DiffusedValue's checkpoint.")
        same = ("observation_dim", "action_dim")
        self.value = [self.load_companion(path, "advantages", same=same)]

    def on_fit_start(self) -> None:
        """Put the value where the module is by now."""
        super().on_fit_start()
        self.value[0].to(self.device)

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the actions; in the ascent unweighted, less the reward."""
        options, states, data = self.hparams, batch["observations"], self.trajectory
        error = self._actions(states) - data.actions.normalize(batch["actions"])
        error = error.square().mean(-1)
        if options["extraction"] == "regression":
            advantages = self.value[0].advantages(states, batch["actions"], self.futures)
            scaled = advantages / (options["temperature"] * advantages.std() + 1e-8)
            weights = scaled.exp().clamp(max=options["max_weight"])
            info = {"cloning_error": error.detach().mean(), "advantage_std": advantages.std()}
            return (weights * error).mean() / weights.mean(), info
        futures = self.value[0].sample_futures(states, how=self.futures).flatten(0, 1)
        actions = data.actions.unnormalize(self._actions(futures))
        rewards = self.value[0].rewards_of(futures, actions)
        info = {"cloning_error": error.detach().mean(), "reward": rewards.detach().mean()}
        gain = rewards.mean() / rewards.detach().abs().mean()
        return error.mean() - options["q_weight"] * gain, info

    def _actions(self, states: Tensor) -> Tensor:
        """The actor's normalised actions (B, A) at states (B, O) in environment units."""
        return self.actor(self.trajectory.observations.normalize(states)).tanh()

    def decide(self, states: Tensor, how: Acting, *, generator: Generators = None) -> Tensor:
        """States (N, O) -> chunks of one action (N, 1, A), in environment units."""
        chosen = self.ema(self.trajectory.observations.normalize(states)).tanh()
        return self.trajectory.actions.unnormalize(chosen)[:, None]
