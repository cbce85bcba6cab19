"""Q-learning over skills that a diffusion prior proposes (LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffrl_lightning.diffusion import choose
from diffrl_lightning.modules.acting import SkillSampling
from diffrl_lightning.modules.base import Role
from diffrl_lightning.modules.companions import SAME_SKILLS
from diffrl_lightning.nets import EMA, SkillCritic
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError, TrainingData


@dataclass(frozen=True, kw_only=True)
class SkillQActing(SkillSampling):
    """How a LatentQ acts: candidates of the prior, of which the critics choose one.

    Args:
        num_candidates: skills drawn for each state; 1 clones.
        critics: choose by the ``least`` of their values, or by the ``mean``.
        choice_temperature: one is drawn with probability proportional to exp(Q / choice_temperature);
            0 takes the best.
    """

    num_candidates: int = 50
    critics: Literal["least", "mean"] = "least"
    choice_temperature: float = 0.0


class LatentQ(Role):
    """Critics Q(s, z) of skills, by batch-constrained double Q-learning over candidates of the prior.

    No critic is asked about a skill that the prior would not draw. Candidates of all chunks are drawn
    once, before training, and held in half precision: N * num_candidates * D * 2 bytes. The prior,
    with the skills behind it, is frozen, and travels in this model's checkpoint.

    Where the environment has a goal, the critics see one, and the reward is 1 for each step that ends
    within ``goal_radius`` of it, whatever the data's: goals are states of the chunk's own future
    (``data.num_goals``) or, for a share of ``random_goals``, of other chunks' (hindsight relabelling,
    Andrychowicz et al. 2017). A goal is about the first G entries of the state.

    Args:
        horizon: H, steps of a skill, taken from the data.
        prior_ckpt: checkpoint of the LatentDiffusion.
        latent_dim: D, that of the prior.
        hidden_dim: width of the critics.
        num_critics: K, networks that estimate Q.
        num_candidates: M, skills that the best is taken of, in training.
        num_inference_steps: network evaluations of a candidate in training.
        max_memory_gib: most memory that candidates may take.
        discount: of a step.
        tau: share of the new weights that the target critics take at a step.
        goal_radius: how close to a goal counts as there.
        random_goals: share of goals that are of other chunks.
        training: keywords of :class:`Role`.
    """

    batch_type = ChunkBatch
    takes_goals = True
    acting = SkillQActing
    companions: ClassVar = {"prior": ("encode_all", SAME_SKILLS)}
    monitor = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 10,
        prior_ckpt: str | None = None,
        latent_dim: int = 16,
        hidden_dim: int = 256,
        num_critics: int = 2,
        num_candidates: int = 32,
        num_inference_steps: int = 5,
        max_memory_gib: float = 4.0,
        discount: float = 0.995,
        tau: float = 0.005,
        goal_radius: float = 0.45,
        random_goals: float = 0.2,
        lr: float = 5e-4,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        **training: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, lr=lr, lr_schedule=lr_schedule, **training)
        self.horizon, self.latent_dim, self.num_candidates = horizon, latent_dim, num_candidates
        self.candidate_sampling = SkillSampling(num_inference_steps=num_inference_steps)
        self.discount = discount
        self.needs_rewards = not self.goal_dim  # else it learns of arrivals at goals
        self.critic = SkillCritic(
            observation_dim + self.goal_dim,
            latent_dim,
            hidden_dim=hidden_dim,
            num_heads=num_critics,
        )
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.prior: Any = None
        self._encoded: Tensor | None = None  # (N, D), and
        self._candidates: Tensor | None = None  # (N, M, D), of all training chunks

    def fit_normalizers(self, data: TrainingData) -> None:
        """Those of the prior and its skills are all there are."""

    def setup(self, stage: str) -> None:
        """Refuse data without goals where the environment has some."""
        super().setup(stage)
        data: TrainingData = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.goal_dim and stage == "fit" and not data.num_goals:
            raise InputError(
                "The environment has goals, and the critics learn of them in hindsight: give "
                "data.num_goals, say 8, or data.goal_key none."
            )

    def on_fit_start(self) -> None:
        """Encode all training chunks, and draw the candidates of the states behind them, once.

        Raises:
            InputError: if there is no room for them.
        """
        super().on_fit_start()
        chunks = self.trainer.datamodule.train_data  # type: ignore[attr-defined]
        size = chunks.num_starts * self.num_candidates * self.latent_dim * 2 / 2**30
        if size > self.hparams["max_memory_gib"]:
            raise InputError(
                f"{chunks.num_starts} chunks with num_candidates={self.num_candidates} take "
                f"{size:.1f} GiB: raise model.max_memory_gib, or take fewer candidates."
            )
        shown = self.trainer.is_global_zero
        self._encoded = self.prior.encode_all(chunks, show_progress=shown)
        self._candidates = self._propose_all(chunks, show_progress=shown)

    def _propose_all(self, chunks: Any, *, show_progress: bool) -> Tensor:
        """Candidates (N, M, D) behind all chunks; the same whenever a run goes on, in all processes."""
        rows = torch.arange(chunks.num_starts).split(1024)
        silent = None if show_progress else True  # None: where no one looks
        bar = tqdm(rows, desc="Drawing candidates", unit="batch", leave=False, disable=silent)
        assert self.noise_seed is not None
        generator = torch.Generator(self.device).manual_seed(self.noise_seed)
        size = (chunks.num_starts, self.num_candidates, self.latent_dim)
        drawn = torch.empty(size, dtype=torch.half, device=self.device)
        for part in bar:
            following = chunks[part]["next_observations"].to(self.device)
            drawn[part.to(self.device)] = self._propose(following, generator).half()
        return drawn

    @torch.no_grad()
    def _propose(self, states: Tensor, generator: Generators = None) -> Tensor:
        """Candidates (B, M, D) of the prior in states (B, O)."""
        return self.prior.sample_skills(
            states, self.num_candidates, self.candidate_sampling, generator=generator
        )

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors of the critics, summed (LDCQ, algorithm 1)."""
        chunks = batch["chunks"]
        if self.training and self._encoded is not None and self._candidates is not None:
            skills, candidates = self._encoded[chunks], self._candidates[chunks]
        else:
            skills, candidates = self.prior.encode(batch), self._propose(batch["next_observations"])
        rewards, goals = batch["rewards"], None
        if self.goal_dim:
            goals = self._goals(batch["goal_observations"])
            rewards = self._arrivals(batch, goals)
        target = self._target(batch, rewards, goals, candidates)
        states = self._states(batch["observations"][:, 0], goals)
        q = self._q(self.critic, states, skills[:, None])[..., 0]
        loss = (q - target).square().mean(1).sum()
        return loss, {"q_mean": q.detach().mean(), "target_std": target.std()}

    @torch.no_grad()
    def _target(
        self, batch: ChunkBatch, rewards: Tensor, goals: Tensor | None, candidates: Tensor
    ) -> Tensor:
        """Targets (K, B), by clipped double Q-learning among candidates (Fujimoto et al. 2018, eq. 10).

        For a chunk of k steps from s to s', with the candidates C(s')::

            sum_j discount^j r_j + discount^k min(Q'_i(s', z*), Q'_{i-1}(s', z*)),
            z* = argmax_{z in C(s')} Q'_{i-1}(s', z)

        Before the first critic comes the last; nothing follows where the episode really ended.
        """
        powers = self.discount ** torch.arange(rewards.shape[1], device=rewards.device)
        following = self._states(batch["next_observations"], goals)
        q = self._q(self.target_critic, following, candidates)  # (K, B, M)
        other = q.roll(1, 0)
        best = other.argmax(-1, keepdim=True)
        least = q.minimum(other).gather(-1, best)[..., 0]
        beyond = self.discount ** batch["steps"] * (1 - batch["terminations"])
        return (rewards * powers).sum(1) + beyond * least

    def _goals(self, futures: Tensor) -> Tensor:
        """Goals (B, G) of chunks: of their own futures (B, O), or of those of others."""
        goals = futures[:, : self.goal_dim]
        other = torch.rand(len(goals), 1, device=goals.device) < self.hparams["random_goals"]
        return torch.where(other, goals.roll(1, 0), goals)

    def _arrivals(self, batch: ChunkBatch, goals: Tensor) -> Tensor:
        """1 for each real step (B, H) that ends at the goal."""
        # What pads a chunk is its last observation; behind the last real step comes the next one.
        ends = torch.cat([batch["observations"][:, 1:], batch["next_observations"][:, None]], 1)
        last = torch.arange(ends.shape[1], device=ends.device) >= batch["steps"][:, None] - 1
        ends = torch.where(last[..., None], batch["next_observations"][:, None], ends)
        there = (ends[..., : self.goal_dim] - goals[:, None]).norm(dim=-1)
        return (there <= self.hparams["goal_radius"]) * batch["mask"].to(goals)

    def choose(
        self,
        states: Tensor,
        goals: Tensor | None,
        how: SkillQActing,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """Skills (N, D), normalised, in states (N, O) for goals (N, G), by the target critics."""
        skills = self.prior.sample_skills(states, how.num_candidates, how, generator=generator)
        q = self._q(self.target_critic, self._states(states, goals), skills)
        q = q.mean(0) if how.critics == "mean" else q.amin(0)
        chosen = choose(q, how.choice_temperature, generator)
        return skills.take_along_dim(chosen[:, None, None], 1)[:, 0]

    def decode(self, states: Tensor, skills: Tensor, steps: Tensor, **options: Any) -> Tensor:
        """Actions (N, A) of normalised skills (N, D) in states (N, O), as the prior's."""
        return self.prior.decode(states, skills, steps, **options)

    def build_policy(self, how: SkillQActing) -> SkillPolicy:
        """A policy that plays the best of some skills, then chooses anew.

        Raises:
            InputError: if a skill is to act for longer than it was learned, or T is exceeded.
        """
        if self.prior is not None:  # it comes when training begins
            how.timesteps(self.prior.diffusion)
        return SkillPolicy(
            partial(self.choose, how=how),
            partial(self.decode, temperature=how.action_temperature),
            horizon=self.horizon,
            n_action_steps=how.n_action_steps,
            **self.policy_options(),
        )

    @staticmethod
    def _q(critic: Any, states: Tensor, skills: Tensor) -> Tensor:
        """Q (K, B, M) in full precision: small differences of large numbers."""
        with torch.autocast(states.device.type, enabled=False):
            return critic(states.float(), skills.float())

    def _states(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """States and goals as the critics see them (B, O + G), normalised."""
        normalizer = self.prior.skills.trajectory.observations
        normalized = normalizer.normalize(states)
        if goals is None:
            return normalized
        # As the state's first entries are.
        padded = torch.cat([goals, states[:, self.goal_dim :]], -1)
        return torch.cat([normalized, normalizer.normalize(padded)[:, : self.goal_dim]], -1)
