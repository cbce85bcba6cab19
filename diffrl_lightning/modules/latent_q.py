"""Q-learning over skills that a diffusion prior proposes (LDCQ, Venkatraman et al. 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffrl_lightning.diffusion import Sampler, check_sampling, choose
from diffrl_lightning.modules.base import SAME_SKILLS, DiffusionModule
from diffrl_lightning.nets import EMA, SkillCritic
from diffrl_lightning.policies import SkillPolicy
from diffrl_lightning.types import ChunkBatch, Generators, InputError

Agreement = Literal["least", "mean"]


class LatentQ(DiffusionModule):
    """Critics of skills, which learn from the best of the skills that the prior would draw next.

    For a chunk that took k steps from s to s', with its skill z and the candidates C(s') of the prior::

        Q_i(s, z)  ->  sum_j discount^j r_j + discount^k min(Q'_i(s', z*), Q'_{i-1}(s', z*)),
        z* = argmax_{z' in C(s')} Q'_{i-1}(s', z')

    before the first critic comes the last, and nothing follows where the episode really ended. No
    critic is asked about a skill that the prior would not draw (batch-constrained, double Q-learning).
    Candidates of all chunks are drawn once, before training, and held in half precision:
    N * num_candidates * D * 2 bytes.

    Where the environment has a goal, the critics are told one, and the reward is 1 for each step that
    ends within ``goal_radius`` of it, whatever the data's: goals are states of the chunk's own future
    (``data.num_goals``) or, for a share of ``random_goals``, of other chunks'.

    The prior, with the skills behind it, is frozen, and travels in this model's checkpoint.

    Args:
        observation_dim: O, taken from the data.
        action_dim: A, taken from the data.
        goal_dim: G, taken from the data; a goal is about the first G entries of the state.
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
        lr: learning rate.
        lr_schedule: keep the rate, or let it fall to 0 along a cosine over the whole run.
        weight_decay: decoupled weight decay.
        compile: compile the critics for training.

    Raises:
        InputError: if an argument is out of range.
    """

    learns_from = "chunks"
    companions: ClassVar = {"prior": ("encode_all", SAME_SKILLS)}
    chosen_by = None  # the critics' loss is no measure: its target moves

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        goal_dim: int = 0,
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
        weight_decay: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.check_shares(tau=tau, discount=discount)
        if num_critics < 1 or num_candidates < 1 or not 0 <= random_goals <= 1:
            raise InputError(
                f"{num_critics=} and {num_candidates=} must be at least 1, {random_goals=} lie "
                "in [0, 1]."
            )
        self.goal_dim, self.discount = goal_dim, discount
        self.critic = SkillCritic(
            observation_dim + goal_dim, latent_dim, hidden_dim=hidden_dim, num_heads=num_critics
        )
        self.target_critic = EMA(self.critic, decay=1 - tau)
        self.prior: Any = None
        self._encoded: Tensor | None = None  # (N, D), and
        self._candidates: Tensor | None = None  # (N, M, D), of all training chunks

    def averaged(self) -> list[tuple[EMA, nn.Module]]:
        """The target critics."""
        return [(self.target_critic, self.critic)]

    def setup(self, stage: str) -> None:
        """Refuse data without goals where the environment has some.

        Raises:
            InputError: naming what would do.
        """
        super().setup(stage)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.goal_dim and stage == "fit" and not datamodule.num_goals:
            raise InputError(
                "The environment has goals, and the critics learn of them in hindsight: give "
                "data.num_goals, say 8, or data.goal_key none."
            )

    def fit_normalizers(self, datamodule: Any) -> None:
        """Those of the prior and its skills are all there are."""

    def on_fit_start(self) -> None:
        """Encode all training chunks, and draw the candidates of the states behind them, once.

        Raises:
            InputError: if there is no room for them.
        """
        super().on_fit_start()
        data = self.trainer.datamodule.train_data  # type: ignore[attr-defined]
        options = self.hparams
        size = data.num_chunks * options["num_candidates"] * options["latent_dim"] * 2 / 2**30
        if size > options["max_memory_gib"]:
            raise InputError(
                f"{data.num_chunks} chunks with num_candidates={options['num_candidates']} take "
                f"{size:.1f} GiB: raise model.max_memory_gib, or take fewer candidates."
            )
        shown = self.trainer.is_global_zero
        self._encoded = self.prior.encode_all(data, show_progress=shown)
        self._candidates = self._draw_all(data, show_progress=shown)

    def _draw_all(self, data: Any, *, show_progress: bool) -> Tensor:
        """Candidates (N, M, D) behind all chunks; the same whenever a run goes on, in all processes."""
        rows = torch.arange(data.num_chunks).split(1024)
        silent = None if show_progress else True  # None: where no one looks
        bar = tqdm(rows, desc="Drawing candidates", unit="batch", leave=False, disable=silent)
        assert self._noise_seed is not None
        generator = torch.Generator(self.device).manual_seed(self._noise_seed)
        options = self.hparams
        size = (data.num_chunks, options["num_candidates"], options["latent_dim"])
        drawn = torch.empty(size, dtype=torch.half, device=self.device)
        for part in bar:
            following = data[part]["next_observations"].to(self.device)
            drawn[part.to(self.device)] = self._draw(following, generator).half()
        return drawn

    @torch.no_grad()
    def _draw(self, states: Tensor, generator: Generators = None) -> Tensor:
        return self.prior.sample_skills(
            states,
            self.hparams["num_candidates"],
            num_inference_steps=self.hparams["num_inference_steps"],
            generator=generator,
        )

    def compute_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors of the critics."""
        chunks = batch["chunks"]
        if self.training and self._encoded is not None and self._candidates is not None:
            skills, candidates = self._encoded[chunks], self._candidates[chunks]
        else:
            skills, candidates = self.prior.encode(batch), self._draw(batch["next_observations"])
        rewards, goals = batch["rewards"], None
        if self.goal_dim:
            goals = self._goals(batch["goal_observations"])
            rewards = self._arrivals(batch, goals)
        powers = self.discount ** torch.arange(rewards.shape[1], device=rewards.device)
        with torch.no_grad():
            following = self._states(batch["next_observations"], goals)
            q = self._q(self.target_critic, following, candidates)  # (K, B, M)
            other = q.roll(1, 0)
            best = other.argmax(-1, keepdim=True)
            least = q.minimum(other).gather(-1, best)[..., 0]
            beyond = self.discount ** batch["steps"] * (1 - batch["terminations"])
            target = (rewards * powers).sum(1) + beyond * least  # (K, B)
        states = self._states(batch["observations"][:, 0], goals)
        found = self._q(self.critic, states, skills[:, None])[..., 0]
        loss = (found - target).square().mean(1).sum()
        return loss, {"q_mean": found.detach().mean(), "target_std": target.std()}

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
        *,
        num_candidates: int = 50,
        critics: Agreement = "least",
        choice_temperature: float = 0.0,
        generator: Generators = None,
        **sampling: Any,
    ) -> Tensor:
        """Skills (N, D), normalised, in states (N, O) for goals (N, G), by the target critics.

        Keywords are those of :meth:`make_policy`.
        """
        skills = self.prior.sample_skills(states, num_candidates, generator=generator, **sampling)
        q = self._q(self.target_critic, self._states(states, goals), skills)
        q = q.mean(0) if critics == "mean" else q.amin(0)
        chosen = choose(q, choice_temperature, generator)
        return skills.take_along_dim(chosen[:, None, None], 1)[:, 0]

    def make_policy(
        self,
        *,
        n_action_steps: int | None = None,
        num_candidates: int = 50,
        critics: Agreement = "least",
        choice_temperature: float = 0.0,
        guidance_scale: float = 1.0,
        sampler: Sampler = "ddim",
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        action_temperature: float = 0.0,
    ) -> SkillPolicy:
        """A policy that plays the best of some skills, then chooses anew.

        Args:
            n_action_steps: steps that a skill acts for, default H.
            num_candidates: skills drawn for each state, of which the critics choose one; 1 clones.
            critics: go by the least of their values, or by the mean.
            choice_temperature: of a softmax of Q; 0 takes the best.
            guidance_scale: of the prior, classifier-free.
            sampler: how to denoise.
            num_inference_steps: network evaluations of a skill, default 10.
            temperature: standard deviation of the skills' noise, 1 as in training.
            action_temperature: factor of the actions' standard deviation; 0 plays the mean.
        """
        if num_candidates < 1 or choice_temperature < 0:
            raise InputError(
                f"{num_candidates=} must be at least 1, {choice_temperature=} at least 0."
            )
        if critics not in get_args(Agreement):
            raise InputError(f"{critics=} is unknown: choose {', '.join(get_args(Agreement))}.")
        if sampler not in get_args(Sampler):  # the prior is not here yet before training
            raise InputError(f"{sampler=} is unknown: choose {', '.join(get_args(Sampler))}.")
        if self.prior is not None and num_inference_steps is not None:
            check_sampling(self.prior.diffusion, sampler, num_inference_steps)
        choose = partial(
            self.choose,
            num_candidates=num_candidates,
            critics=critics,
            choice_temperature=choice_temperature,
            guidance_scale=guidance_scale,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            temperature=temperature,
        )
        return self.skill_policy(
            choose,
            lambda *args, **kwargs: self.prior.decode(
                *args, temperature=action_temperature, **kwargs
            ),
            n_action_steps=n_action_steps,
        )

    @staticmethod
    def _q(critic: Any, states: Tensor, skills: Tensor) -> Tensor:
        """Q (K, B, M) in full precision: small differences of large numbers."""
        with torch.autocast(states.device.type, enabled=False):
            return critic(states.float(), skills.float())

    def _states(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """What the critics see (B, O + G), normalised."""
        normalizer = self.prior.skills.trajectory.observations
        seen = normalizer.normalize(states)
        if goals is None:
            return seen
        # As the state's first entries are.
        padded = torch.cat([goals, states[:, self.goal_dim :]], -1)
        return torch.cat([seen, normalizer.normalize(padded)[:, : self.goal_dim]], -1)
