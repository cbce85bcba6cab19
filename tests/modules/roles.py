"""The one list of roles, each with the small models of it that every role's test is run on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffrl_lightning import (
    IDQL,
    TD3BC,
    BehaviourCloning,
    ChunkData,
    DataSynthesizer,
    DecisionDiffuser,
    DiffusedValue,
    Diffuser,
    DiffusionDynamics,
    DiffusionPolicy,
    DiffusionQL,
    DynamicsAgent,
    EnsembleDynamics,
    FutureData,
    LatentDiffusion,
    LatentQ,
    LatentSkills,
    RelativeReward,
    SequenceData,
    TrajectorySynthesizer,
    TrajectoryValue,
    TransitionData,
    ValuePolicy,
)

KINDS = {c.batch_type: c for c in (SequenceData, TransitionData, ChunkData, FutureData)}


class Case(NamedTuple):
    """A small model of a role, of data with the dimensions of Pendulum-v1.

    ``data`` are keywords of its datamodule, ``check`` those of ``check_role``, and ``acting`` further
    ways to act. ``needs`` names the companion that it builds on, of :func:`companions`.
    """

    role: type
    arguments: Mapping[str, Any]
    data: Mapping[str, Any] = {}
    check: Mapping[str, Any] = {}
    acting: tuple[Mapping[str, Any], ...] = ()
    needs: str = ""

    def datamodule(self, dataset):
        windowed = (
            {"horizon": 8}
            if self.role.batch_type.__name__ in ("SequenceBatch", "ChunkBatch")
            else {}
        )
        return KINDS[self.role.batch_type](dataset, **({"batch_size": 32} | windowed | self.data))


PLANS = {"dim": 8, "dim_mults": (1, 2), "num_train_timesteps": 8, "horizon": 8}
DIT = {"backbone": "dit", "dim": 16, "num_heads": 2}
STATES = PLANS | {"hidden_dim": 16}
WARM = {"sampler": "ddpm", "replan_every": 2, "warm_start_steps": 3, "guidance_scale": 2.0}
POLICY = {"dim": 16, "dim_mults": (1, 2), "depth": 1, "num_heads": 2, "num_train_timesteps": 8,
          "horizon": 8, "n_action_steps": 4, "lr_warmup_steps": 0,
          "lr_schedule": "constant"}  # fmt: skip
AVERAGED = {"ema_start": 0, "ema_update_every": 1}
ACTOR = {"hidden_dim": 16, "normalizer": "gaussian"}
SYNTHESIS = {"hidden_dim": 32, "num_blocks": 1, "embed_dim": 16} | AVERAGED
WINDOWS = {"horizon": 8, "dim": 16, "dim_mults": (1, 2)} | AVERAGED
FUTURES = {"hidden_dim": 32, "num_blocks": 1, "embed_dim": 16, "num_train_timesteps": 8}
SKILLS = {"horizon": 8, "latent_dim": 4, "hidden_dim": 32}
DYNAMICS = {"horizon": 8, "dim": 64, "depth": 1, "num_train_timesteps": 16} | AVERAGED
REWARD = {"horizon": 8, "num_train_timesteps": 8, "normalizer": "limits", "num_origins": 2}
SILENT = {"acts": False}
SLOWLY = {"acts": False, "lr": 1e-3, "steps": 150}

ROLES = [
    *(Case(Diffuser, PLANS | more, data, acting=({"sampler": "ddpm", "replan_every": 1},))
      for more, data in (({}, {}), (DIT, {}), ({"attention": True, "stride": 2}, {"stride": 2}))),
    *(Case(DecisionDiffuser, STATES | more, data, acting=(WARM,))
      for more, data in (({}, {}), (DIT, {}),
                         ({"n_obs_steps": 3, "attention": True, "stride": 2}, {"stride": 2}))),
    *(Case(TrajectoryValue, PLANS | {"dim": 16, "horizon": h}, {"horizon": h}, SILENT) for h in (8, 7)),
    *(Case(DiffusionPolicy, POLICY | {"backbone": backbone, "n_obs_steps": n},
           {"padding": "edge", "pad_before": n - 1, "pad_after": 3},
           acting=({"sampler": "ddpm", "n_action_steps": 1},
                   {"sampler": "dpmpp", "num_inference_steps": 4}))
      for backbone in ("unet", "transformer", "mlp") for n in (1, 3)),
    Case(BehaviourCloning, {"hidden_dim": 16}, check={"noisy": False}),
    Case(BehaviourCloning, {"hidden_dim": 16, "distribution": "gaussian"}, check={"noisy": False},
         acting=({"temperature": 1.0},)),
    Case(TD3BC, {"hidden_dim": 16, "policy_delay": 1}, check={"noisy": False, "loss": "critic_loss"}),
    *(Case(DiffusionQL, ACTOR | AVERAGED | {"actor_loss": kind}, check={"loss": "bc_loss"},
           acting=({"num_candidates": 1}, {"average": True, "num_candidates": 2}))
      for kind in ("chain", "one_step")),
    Case(IDQL, ACTOR | {"critic_hidden_dim": 16, "ema_decay": 0.9, "dropout": 0.0},
         check={"loss": "bc_loss"}, acting=({"choice": "expectile"}, {"num_candidates": 1})),
    *(Case(DataSynthesizer, SYNTHESIS | more, check=SILENT)
      for more in ({}, {"process": "ddpm", "bound_gap": 0.5},
                   {"conditions": ("return", "task"), "cond_drop_prob": 0.0},
                   {"terminals": "classified", "next_state": "change"})),
    *(Case(TrajectorySynthesizer, WINDOWS | more, check=SILENT)
      for more in ({}, {"backbone": "dit", "process": "ddpm"},
                   {"conditions": ("return",), "cond_drop_prob": 0.0})),
    *(Case(DiffusedValue, FUTURES | {"policy_condition": policy, "offset_condition": offset},
           {"context_size": 4 if policy == "set" else 0}, SILENT)
      for policy in ("none", "set") for offset in (False, True)),
    *(Case(ValuePolicy, {"hidden_dim": 32, "extraction": extraction}, needs="value_ckpt",
           check={"noisy": False, "loss": "cloning_error", "lr": 1e-2, "steps": 100})
      for extraction in ("regression", "ascent")),
    *(Case(RelativeReward, REWARD | more, {"val_fraction": 0.2},
           SLOWLY | {"loss": None if more.get("objective") == "discriminator" else "unexplained"},
           needs="diffusers")
      for more in ({"network": "unet", "dim": 32, "dim_mults": (2, 4)},
                   {"network": "unet", "dim": 32, "dim_mults": (2, 4), "objective": "discriminator"},
                   {"window": 4, "dim": 64},
                   {"objective": "mean", "gradient_at": "mean", "unit": "x0", "dim": 64})),
    *(Case(LatentSkills, SKILLS | {"num_layers": 1, "lr": 1e-3} | more, check={"loss": "end_nll"})
      for more in ({"kl_weight": 0.05}, {"kl_weight": 1.0}, {"step_aware": True})),
    *(Case(LatentDiffusion, SKILLS | {"hidden_dim": 64, "num_blocks": 1, "embed_dim": 16,
                                      "num_train_timesteps": 8, "prediction_type": kind},
           check={"lr": 1e-2, "steps": 200}, needs="skills_ckpt")
      for kind in ("x0", "eps")),
    Case(LatentQ, SKILLS | {"num_candidates": 3, "num_inference_steps": 2, "discount": 0.5},
         needs="prior_ckpt"),
    *(Case(DiffusionDynamics, DYNAMICS | {"backbone": backbone}, check=SLOWLY | {"steps": 200})
      for backbone in ("mlp", "transformer")),
    Case(DynamicsAgent, DYNAMICS | {"horizon": 6, "dim": 32, "num_train_timesteps": 8, "lr": 1e-3,
                                    "policy_dim": 16, "policy_start": 0, "policy_every": 1},
         {"horizon": 6},
         {"noisy": False, "loss": "critic_loss", "lr": 1e-3, "steps": 150}),
    Case(EnsembleDynamics, {"num_members": 2, "hidden_dim": 32, "num_layers": 2},
         check=SILENT | {"loss": "end_loss"}),
]  # fmt: skip
