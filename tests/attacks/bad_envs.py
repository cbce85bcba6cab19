"""Environments that fail, registered under the names of what is wrong with them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple

STATE, FORCE = Box(-1, 1, (3,), np.float32), Box(-1, 1, (1,), np.float32)


class Toy(gym.Env):
    """Three observations, one action; ``fault`` says what is wrong."""

    def __init__(
        self, fault: str = "", state: Any = STATE, force: Any = FORCE, render_mode: Any = None
    ) -> None:
        errors = {"value": ValueError, "key": KeyError, "runtime": RuntimeError, "os": OSError,
                  "exit": SystemExit, "memory": MemoryError}  # fmt: skip
        if fault in errors:
            raise errors[fault]("a secret of the constructor")
        self.fault, self.observation_space, self.action_space = fault, state, force

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.fault == "reset":
            raise RuntimeError("no reset")
        if self.fault == "old reset":
            return np.zeros(3, np.float32)
        width = 4 if self.fault == "shape" else 3
        return np.full(width, np.nan if self.fault == "nan" else 0, np.float32), {}

    def step(self, action: Any) -> Any:
        if self.fault == "step":
            raise KeyError("no step")
        if self.fault == "old step":
            return np.zeros(3, np.float32), 0.0, False, {}
        reward = float("nan") if self.fault == "reward" else 0.0
        return np.zeros(3, np.float32), reward, False, False, {}


FAULTS = ("value", "key", "runtime", "os", "exit", "memory", "reset", "old reset", "shape", "nan",
          "step", "old step", "reward")  # fmt: skip
SPACES = {
    "discrete": {"force": Discrete(2)},
    "multi": {"force": MultiDiscrete([3])},
    "tuple": {"force": Tuple([FORCE])},
    "table": {"force": Box(-1, 1, (1, 1))},
    "scalar": {"force": Box(-1, 1, ())},
    "tuples": {"state": Tuple([STATE])},
    "number": {"state": Discrete(3)},
    "image": {"state": Box(0, 255, (8, 8, 3), np.uint8)},
    "text": {"state": Dict({"said": Text(9), "seen": STATE})},
    "texts": {"state": Dict({"said": Text(9)})},
    "five": {"state": Box(-1, 1, (5,))},
    "two": {"force": Box(-1, 1, (2,))},
    "unbounded": {"force": Box(-np.inf, np.inf, (1,))},
    "half": {"force": Box(0, np.inf, (1,))},
}


def register() -> None:
    for fault in FAULTS:
        name = f"Bad{fault.title().replace(' ', '')}-v0"
        gym.register(
            name, Toy, kwargs={"fault": fault}, max_episode_steps=5, disable_env_checker=True
        )
    for name, spaces in SPACES.items():
        gym.register(f"Space{name.title()}-v0", Toy, kwargs=spaces, max_episode_steps=5)
    gym.register("NoCallable-v0", "attacks.bad_envs:STATE", max_episode_steps=5)
    gym.register("NoModule-v0", "attacks.nowhere:Toy", max_episode_steps=5)


if "BadValue-v0" not in gym.registry:
    register()
