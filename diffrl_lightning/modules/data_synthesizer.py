"""From a dataset to a larger one: transitions (SynthER, Lu et al. 2023), or trajectories."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from diffrl_lightning.diffusion import EDM, rand
from diffrl_lightning.inputs import one_of
from diffrl_lightning.modules.synthesizer import Synthesizer
from diffrl_lightning.nets import Backbone, TransitionMLP, make_backbone, mlp
from diffrl_lightning.normalizers import Normalizer, make_normalizer
from diffrl_lightning.types import (
    Generators,
    InputError,
    SequenceBatch,
    TrainingData,
    TransitionBatch,
)

_LEAST_SPREAD = 0.1  # of terminals, lest a few of them dominate the loss of their entry


class DataSynthesizer(Synthesizer):
    """SynthER: transitions of state, action, reward, next state and terminal, diffused whole.

    The paper's process is EDM with a stochastic sampler of 255 evaluations; ``ddpm`` is the discrete
    diffusion of the other roles, on the same network. Terminals are not normalised, and a sample's is 1
    above one half. Their ``sigma_data`` in EDM is their standard deviation, at least 0.1, where the
    paper has 1 for all entries: with 1, the preconditioning expects rare terminals to be predicted at
    noise levels that hide them, and they are lost.

    Args:
        hidden_dim: width of the network.
        num_blocks: its residual layers.
        embed_dim: width of its first layer, and of all embeddings.
        layer_norm: normalise before each residual layer.
        next_state: how the next state is represented: ``itself``, as published, or by the ``change``
            from the state, which is sharper where states change little in a step.
        terminals: ``diffused`` with the rest, as published; or ``classified``: drawn, after it, with
            the chance that a network of its own gives for the state and the action. That is sharper
            where an episode ends at a boundary of the states, which diffusion blurs.
        training: keywords of :class:`Synthesizer`.
    """

    batch_type = TransitionBatch

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden_dim: int = 1024,
        num_blocks: int = 6,
        embed_dim: int = 128,
        layer_norm: bool = False,
        next_state: Literal["itself", "change"] = "itself",
        terminals: Literal["diffused", "classified"] = "diffused",
        adam_betas: tuple[float, float] = (0.9, 0.99),
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, adam_betas=adam_betas, **training)
        one_of(("diffused", "classified"), terminals=terminals)
        one_of(("itself", "change"), next_state=next_state)
        self.widths = [action_dim, observation_dim, 1, observation_dim]
        self.classifier: nn.Module | None = None
        if terminals == "diffused":
            self.widths.append(1)
        else:
            self.classifier = mlp(action_dim + observation_dim, 256, 1)
            self.classifier_ema = self.average(self.classifier)
        net = TransitionMLP(
            sum(self.widths),
            cond_dim=embed_dim if self.conditions else 0,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            embed_dim=embed_dim,
            layer_norm=layer_norm,
        )
        self.build(net, (sum(self.widths),), embed_dim)
        self.changes: Normalizer | None = None
        if next_state == "change":
            self.changes = make_normalizer(self.hparams["normalizer"], observation_dim)

    def param_groups(self) -> list[dict[str, Any]]:
        """The networks."""
        nets = (self.denoiser, self.classifier)
        return [{"params": list(net.parameters())} for net in nets if net is not None]

    def fit_normalizers(self, data: TrainingData) -> None:
        """As for every synthesizer; and of changes, and the spread of the terminals."""
        super().fit_normalizers(data)
        if self.changes is not None:
            states, following, rows = data.training_pairs()
            normalize = self.trajectory.observations.normalize
            self.changes.fit(normalize(following) - normalize(states), rows)
        if isinstance(self.diffusion, EDM) and self.classifier is None:
            terminals, rows = data.training_rows("terminations")
            spread = terminals[rows if rows is not None else slice(None)].float().std()
            self.diffusion.sigma_data[-1] = spread.clamp(min=_LEAST_SPREAD)

    def encode(self, batch: TransitionBatch) -> Tensor:
        """Transitions -> (B, A + O + 1 + O + 1), or one less where terminals are classified."""
        parts = [
            self.trajectory.join(batch["actions"], batch["observations"]),
            self.rewards.normalize(batch["rewards"][:, None]),
            self._encode_next(batch),
        ]
        if self.classifier is None:
            parts.append(batch["terminations"][:, None])
        return torch.cat(parts, -1)

    def loss_weight(self, batch: TransitionBatch) -> Tensor:
        """(B, D): 0 for next states that were not recorded, where the data repeat the last state.

        Trained on them, a model that misses a terminal would make a state that never changes.
        """
        following, states = batch["next_observations"], batch["observations"]
        recorded = ~((following == states).all(1) & (batch["terminations"] > 0))
        weights = torch.ones(len(states), sum(self.widths), device=states.device)
        weights.split(self.widths, -1)[3].copy_(recorded[:, None])
        return weights

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The process's loss; and the cross entropy of the classifier of terminals."""
        loss, info = super().compute_loss(batch)
        if self.classifier is None:
            return loss, info
        step = self.trajectory.join(batch["actions"], batch["observations"])
        ends = batch["terminations"].to(step)
        terminal_loss = binary_cross_entropy_with_logits(self.classifier(step)[:, 0], ends)
        return loss + terminal_loss, info | {"terminal_loss": terminal_loss.detach()}

    def decode(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """The inverse of :meth:`encode`: arrays (B, ...) of a :class:`TransitionBatch`."""
        actions, states, rewards, following, *terminal = x.split(self.widths, -1)
        if self.classifier is None:
            ends = terminal[0] > 0.5
        else:
            logits = self.classifier_ema(torch.cat([actions, states], -1))
            ends = rand(logits.shape, generator=generator, like=logits) < logits.sigmoid()
        if self.changes is not None:
            following = states + self.changes.unnormalize(following)
        observations = self.trajectory.observations
        return {
            "observations": observations.unnormalize(states),
            "actions": self.trajectory.actions.unnormalize(actions),
            "rewards": self.rewards.unnormalize(rewards)[:, 0],
            "next_observations": observations.unnormalize(following),
            "terminations": ends[:, 0].to(x),
        }

    def out_of_bounds(self, samples: dict[str, Tensor]) -> Tensor:
        """As for every synthesizer; and which go on in a state outside the bounds."""
        goes_on = samples["terminations"] == 0
        return (
            super().out_of_bounds(samples) | self._outside(samples["next_observations"]) & goes_on
        )

    def _encode_next(self, batch: TransitionBatch) -> Tensor:
        """Next states, or changes, as they are diffused (B, O)."""
        normalize = self.trajectory.observations.normalize
        following = normalize(batch["next_observations"])
        if self.changes is None:
            return following
        return self.changes.normalize(following - normalize(batch["observations"]))


class TrajectorySynthesizer(Synthesizer):
    """Windows of states, actions and rewards, diffused whole: episodes of H - 1 steps.

    Planners can be trained on them. An episode is truncated after its window: terminations are not
    modelled.

    Args:
        horizon: H, taken from the data.
        stride: taken from the data; must be 1.
        backbone: a temporal ``unet``, or ``dit``, a transformer.
        dim: width of the U-Net's first level, or of the transformer.
        dim_mults: width of each level of the U-Net in multiples of ``dim``.
        attention: linear attention in the U-Net.
        depth: blocks of the transformer.
        num_heads: heads of the transformer.
        training: keywords of :class:`Synthesizer`; conditions are those of the window's first step.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 32,
        stride: int = 1,
        backbone: Backbone = "unet",
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        attention: bool = False,
        depth: int = 2,
        num_heads: int = 4,
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **training)
        if stride != 1 or horizon < 2:
            raise InputError(f"{stride=} must be 1 and {horizon=} at least 2 to make episodes.")
        self.widths = [action_dim, observation_dim, 1]
        net = make_backbone(
            backbone,
            sum(self.widths),
            horizon=horizon,
            dim=dim,
            dim_mults=dim_mults,
            attention=attention,
            depth=depth,
            num_heads=num_heads,
            cond_dim=dim if self.conditions else 0,
        )
        self.build(net, (horizon, sum(self.widths)), dim)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """Windows -> (B, H, A + O + 1)."""
        rewards = self.rewards.normalize(batch["rewards"][..., None])
        return torch.cat(
            [self.trajectory.join(batch["actions"], batch["observations"]), rewards], -1
        )

    def decode(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """(B, H, A + O + 1) -> observations (B, H, O), actions (B, H, A), rewards (B, H)."""
        actions, states, rewards = x.split(self.widths, -1)
        return {
            "observations": self.trajectory.observations.unnormalize(states),
            "actions": self.trajectory.actions.unnormalize(actions),
            "rewards": self.rewards.unnormalize(rewards)[..., 0],
        }
