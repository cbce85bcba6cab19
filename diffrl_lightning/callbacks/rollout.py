"""Rolls the policy out in its environment after every validation, and in tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from diffrl_lightning.callbacks.checkpoint import stop_if_asked
from diffrl_lightning.callbacks.versions import run_versions
from diffrl_lightning.envs.evaluate import Evaluation, evaluate
from diffrl_lightning.envs.pointmaze import Maze
from diffrl_lightning.files import write_whole
from diffrl_lightning.inputs import DEVELOPMENT_SEED, RangeChecked
from diffrl_lightning.metrics import RolloutMetrics
from diffrl_lightning.types import Acting, EnvSource, InputError, Policy


class Rollout(RangeChecked, pl.Callback):
    """Evaluates a role's policy in the datamodule's environment.

    Episode i starts from ``seed + i`` in tests, and from ``seed + 1000000 + i`` in validation, by
    which checkpoints are chosen. Episodes are split over processes and gathered. Logs
    ``val/return_mean`` and so on; a test prints its table and writes ``results.json``. How the role
    acts here is kept in its checkpoints: there ``make_policy()`` acts alike.

    Args:
        num_episodes: episodes of a test.
        val_episodes: episodes of a validation; 0 leaves rollouts to tests.
        seed: of the first episode.
        num_envs: environments that run at once, in each process.
        asynchronous: run every environment in a process of its own.
        acting: how the role acts, of the class that it names (``PlanActing`` for a Diffuser); default
            as its checkpoint was tested, or as the class has it.
        results_path: where a test writes its figures; default ``results.json`` in the run's folder.
        keep_episodes: of how many episodes the path is kept for pictures.
    """

    val_metrics: ClassVar = (  # that validations log; the last three where they are known
        "return_mean",
        "return_sem",
        "episode_length",
        "num_episodes",
        "decision_ms",
        "normalized_score",
        "success_rate",
        "wall_free_rate",
    )

    def __init__(
        self,
        num_episodes: int = 50,
        val_episodes: int = 10,
        seed: int = 0,
        num_envs: int = 10,
        asynchronous: bool = False,
        acting: Acting | None = None,
        results_path: str | None = None,
        keep_episodes: int = 8,
    ) -> None:
        self.num_episodes, self.val_episodes, self.seed = num_episodes, val_episodes, seed
        self.num_envs, self.asynchronous = num_envs, asynchronous
        self.acting, self.results_path, self.keep_episodes = acting, results_path, keep_episodes
        self.evaluation: Evaluation | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before any training, a way to act that the role has not, or no environment."""
        if stage == "test" or self.val_episodes:
            self.check(pl_module, getattr(trainer, "datamodule", None))
        elif self.acting is not None:  # nothing is rolled out yet
            pl_module.make_policy(self.acting)  # type: ignore[operator]

    def check(self, pl_module: Any, source: EnvSource | None) -> None:
        """Refuse what could not be rolled out."""
        if source is None:
            raise InputError("Rollout takes its environments from a datamodule: pass one.")
        source.make_env().close()
        pl_module.make_policy(self.acting)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Let checkpoints say how the role is tested."""
        if self.acting is not None:
            pl_module.default_acting = self.acting

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Roll out and log under ``val/``."""
        if self.val_episodes and not trainer.sanity_checking:
            seed = self.seed + DEVELOPMENT_SEED
            result = self._run(trainer, pl_module, seed, self.val_episodes)
            self._log(pl_module, result, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Roll out, log under ``test/``, print and write the results."""
        result = self._run(trainer, pl_module, self.seed, self.num_episodes)
        self._log(pl_module, result, "test")
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, result, folder)

    def _run(
        self, trainer: pl.Trainer, pl_module: Any, seed: int, num_episodes: int
    ) -> dict[str, float]:
        seeds = list(range(seed, seed + num_episodes))[trainer.global_rank :: trainer.world_size]
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        was_training = pl_module.training
        precision = trainer.precision_plugin.forward_context()
        with torch.random.fork_rng(devices), torch.no_grad(), precision:
            self.evaluation, metrics = roll_out(
                pl_module.eval().make_policy(self.acting),
                trainer.datamodule,  # type: ignore[attr-defined]
                seeds,
                num_envs=self.num_envs,
                asynchronous=self.asynchronous,
                keep_episodes=self.keep_episodes,
                show_progress=trainer.is_global_zero,
                after_step=partial(stop_if_asked, trainer),
            )
        pl_module.train(was_training)
        # Reduced where the processes talk; other devices may not know float64.
        return metrics.to(pl_module.device if devices else "cpu").compute()

    @staticmethod
    def _log(pl_module: pl.LightningModule, result: dict[str, float], stage: str) -> None:
        for name, value in result.items():
            bar = name in ("return_mean", "success_rate", "wall_free_rate")
            # Equal on all processes already; sync_dist keeps Lightning from warning.
            pl_module.log(f"{stage}/{name}", float(value), prog_bar=bar, sync_dist=True)
        if stage == "val":
            pl_module.log("hp_metric", float(result["return_mean"]), sync_dist=True)

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, result: dict[str, float], folder: Path) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = trainer.lightning_module
        # A checkpoint that is tested by itself: the trainer has taken no steps.
        step = module.loaded_step if trainer.ckpt_path else trainer.global_step
        record = {
            **result,
            "seeds": [self.seed, self.seed + self.num_episodes - 1],
            "num_episodes": self.num_episodes,
            "acting": asdict(self.acting or module.default_acting or module.acting()),
            "role": type(module).__name__,
            "dataset": datamodule.datasets,
            "env_id": datamodule.env_id,
            "ref_scores": datamodule.ref_scores,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "global_step": step,
            "train_seed": module.noise_seed,
            "versions": run_versions(),
        }
        path = Path(self.results_path) if self.results_path else folder / "results.json"
        write_whole(path, json.dumps(record, indent=2) + "\n")
        tqdm.write(f"Results: {path}")


def roll_out(
    policy: Policy,
    source: EnvSource,
    seeds: Sequence[int],
    *,
    num_envs: int = 10,
    asynchronous: bool = False,
    keep_episodes: int = 0,
    show_progress: bool = True,
    after_step: Callable[[], Any] = lambda: None,
) -> tuple[Evaluation, RolloutMetrics]:
    """Run one episode of a policy for each seed.

    Args:
        policy: a fresh policy.
        source: where the environments come from.
        seeds: one an episode.
        num_envs: environments that run at once.
        asynchronous: run every environment in a process of its own.
        keep_episodes: of how many episodes the path is kept.
        show_progress: show a bar of environment steps.
        after_step: called after each step of all environments; it may end them by an exception.

    Returns:
        The episodes and their statistics.
    """
    envs = source.make_vector_env(max(1, min(num_envs, len(seeds))), asynchronous)
    silent = None if show_progress else True  # None: where no one looks
    with tqdm(desc="Rollout", unit="step", leave=False, disable=silent) as bar, closing(envs):

        def progress(steps: int) -> None:
            bar.update(steps)
            after_step()

        evaluation = evaluate(policy, envs, seeds, keep_paths=keep_episodes, progress=progress)
    metrics = RolloutMetrics(source.ref_scores)
    episodes = evaluation.episodes
    metrics.update("return", torch.tensor([e.episode_return for e in episodes]))
    metrics.update("length", torch.tensor([e.length for e in episodes]))
    successes = [e.success for e in episodes if e.success is not None]
    metrics.update("success", torch.tensor(successes))
    if evaluation.num_decisions:
        seconds = torch.tensor([evaluation.decision_seconds], dtype=torch.float64)
        metrics.update("decision_seconds", seconds, repeats=evaluation.num_decisions)
    maze = Maze.of_source(source)
    if maze is not None:
        for plans in (e.plans for e in episodes if e.plans):
            metrics.update("plan", torch.as_tensor(~maze.crosses_wall(plans)))
    return evaluation, metrics
