"""Roles: what the diffusion is over, what conditions it, what is done with a sample."""

from diffrl_lightning.modules.base import DiffusionModule
from diffrl_lightning.modules.behaviour_cloning import BehaviourCloning
from diffrl_lightning.modules.data_synthesizer import DataSynthesizer, TrajectorySynthesizer
from diffrl_lightning.modules.decision_diffuser import DecisionDiffuser
from diffrl_lightning.modules.diffused_value import DiffusedValue
from diffrl_lightning.modules.diffuser import Diffuser
from diffrl_lightning.modules.diffusion_dynamics import DiffusionDynamics
from diffrl_lightning.modules.diffusion_policy import DiffusionPolicy
from diffrl_lightning.modules.diffusion_ql import DiffusionQL
from diffrl_lightning.modules.dynamics_agent import DynamicsAgent
from diffrl_lightning.modules.ensemble_dynamics import EnsembleDynamics
from diffrl_lightning.modules.idql import IDQL
from diffrl_lightning.modules.latent_diffusion import LatentDiffusion
from diffrl_lightning.modules.latent_q import LatentQ
from diffrl_lightning.modules.latent_skills import LatentSkills
from diffrl_lightning.modules.relative_reward import RelativeReward
from diffrl_lightning.modules.synthesizer import Synthesizer
from diffrl_lightning.modules.td3_bc import TD3BC
from diffrl_lightning.modules.trajectory_value import TrajectoryValue
from diffrl_lightning.modules.value_policy import ValuePolicy

__all__ = [
    "IDQL",
    "TD3BC",
    "BehaviourCloning",
    "DataSynthesizer",
    "DecisionDiffuser",
    "DiffusedValue",
    "Diffuser",
    "DiffusionDynamics",
    "DiffusionModule",
    "DiffusionPolicy",
    "DiffusionQL",
    "DynamicsAgent",
    "EnsembleDynamics",
    "LatentDiffusion",
    "LatentQ",
    "LatentSkills",
    "RelativeReward",
    "Synthesizer",
    "TrajectorySynthesizer",
    "TrajectoryValue",
    "ValuePolicy",
]
