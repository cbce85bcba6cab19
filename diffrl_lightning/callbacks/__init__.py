"""Callbacks: rollouts and pictures while a model trains."""

from diffrl_lightning.callbacks.checkpoint import Checkpoint
from diffrl_lightning.callbacks.collect import Collect
from diffrl_lightning.callbacks.maze_map import MazeMap
from diffrl_lightning.callbacks.plan_figure import PlanFigure
from diffrl_lightning.callbacks.refill import Refill
from diffrl_lightning.callbacks.rollout import Rollout
from diffrl_lightning.callbacks.sample_report import SampleReport
from diffrl_lightning.callbacks.sample_writer import SampleWriter
from diffrl_lightning.callbacks.skill_figure import SkillFigure
from diffrl_lightning.callbacks.training_record import TrainingRecord
