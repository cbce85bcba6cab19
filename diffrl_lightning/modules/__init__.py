"""Roles: what the diffusion is over, what conditions it, what is done with a sample."""

from diffrl_lightning.modules.acting import GaussianActing, SkillActing, SynthesisSampling
from diffrl_lightning.modules.base import DiffusionModule, Role
from diffrl_lightning.modules.behaviour_cloning import BehaviourCloning
from diffrl_lightning.modules.data_synthesizer import DataSynthesizer, TrajectorySynthesizer
from diffrl_lightning.modules.decision_diffuser import ConditionalPlanActing, DecisionDiffuser
from diffrl_lightning.modules.diffused_value import DiffusedValue
from diffrl_lightning.modules.diffuser import Diffuser, PlanActing
from diffrl_lightning.modules.diffusion_dynamics import DiffusionDynamics
from diffrl_lightning.modules.diffusion_policy import ChunkActing, DiffusionPolicy
from diffrl_lightning.modules.diffusion_ql import DiffusionQL, QActing
from diffrl_lightning.modules.dynamics_agent import DynamicsAgent
from diffrl_lightning.modules.ensemble_dynamics import EnsembleDynamics
from diffrl_lightning.modules.idql import IDQL, IDQLActing
from diffrl_lightning.modules.latent_diffusion import LatentDiffusion, SkillPlanActing
from diffrl_lightning.modules.latent_q import LatentQ, SkillQActing
from diffrl_lightning.modules.latent_skills import LatentSkills
from diffrl_lightning.modules.relative_reward import RelativeReward
from diffrl_lightning.modules.synthesizer import Synthesizer
from diffrl_lightning.modules.td3_bc import TD3BC
from diffrl_lightning.modules.trajectory_value import TrajectoryValue
from diffrl_lightning.modules.value_policy import ValuePolicy
