"""Datasets of offline reinforcement learning as LightningDataModules."""

from diffrl_lightning.data.base import OfflineData
from diffrl_lightning.data.buffer import ReplayBuffer
from diffrl_lightning.data.chunks import ChunkData, Chunks
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.futures import FutureData, Futures
from diffrl_lightning.data.online import OnlineData, ReplayData
from diffrl_lightning.data.transitions import TransitionData, Transitions
from diffrl_lightning.data.windows import SequenceData, Windows
