"""Bad environments: unknown ones, with spaces of other kinds, or such as fail."""

from __future__ import annotations

from typing import Any

import yaml
from helpers import CONFIGS, TINY

from attacks.world import SHORT, Attack, World


def env(name: str, *options: str) -> Any:
    return lambda world: world.fit(None, f"--data.env_id={name}", *options)


def bad(name: str, *options: str) -> Any:
    """One of this folder's own environments."""
    return env(f"attacks.bad_envs:{name}-v0", *options)


def module(content: str) -> Any:
    def args(world: World) -> list[Any]:
        world.file("canary_env.py", content)
        return world.fit(None, "--data.env_id=canary_env:Pendulum-v1")

    return args


def online(name: str) -> Any:
    """An agent that would learn in it."""

    def args(world: World) -> list[Any]:
        config = yaml.safe_load((CONFIGS / "dynamics_agent.yaml").read_text())
        growing = {"horizon": 5, "num_envs": 1, "prefill_steps": 20, "batch_size": 4}
        growing |= {"env_id": f"attacks.bad_envs:{name}-v0", "batches_per_epoch": 4}
        config["data"] = {"class_path": "OnlineData", "init_args": growing}
        config["trainer"] = {"callbacks": [{"class_path": "Collect"}]}
        return ["fit", "-c", TINY, "-c", world.file("online.yaml", yaml.safe_dump(config)), *SHORT]

    return args


SAYS = "a secret of the constructor"
MEMORY = "memory"
ROWS = [
    # Names
    ("an unknown one", env("NoSuch-v0"), "NoSuch-v0"),
    ("a misspelt one", env("Pendulun-v1"), "Pendulum"),
    ("an unknown version", env("Pendulum-v99"), "Pendulum"),
    ("no name", env(""), "env_id"),
    ("a name that is none", env("a b c!"), "a b c!"),
    ("a function of the system", env("os:system"), "os:system|system"),
    ("an unknown module", env("nowhere:Toy-v0"), "nowhere"),
    ("a module that raises", module("raise ValueError('no')"), "canary_env"),
    ("a module that ends the program", module("raise SystemExit(0)"), "canary_env"),
    ("a module with a mistake", module("def ("), "canary_env"),
    ("an entry point that is nowhere", bad("NoModule"), "NoModule"),
    ("an entry point that is no class", bad("NoCallable"), "NoCallable"),
    # Constructors
    ("its constructor raises ValueError", bad("BadValue"), SAYS),
    ("its constructor raises KeyError", bad("BadKey"), SAYS),
    ("its constructor raises RuntimeError", bad("BadRuntime"), SAYS),
    ("its constructor raises OSError", bad("BadOs"), SAYS),
    ("its constructor ends the program", bad("BadExit"), "BadExit"),
    ("its constructor has no memory", bad("BadMemory"), f"BadMemory|{MEMORY}"),
    ("an unknown keyword", env("Pendulum-v1", "--data.env_kwargs.speed=3"), "speed"),
    ("a keyword of the wrong kind", env("Pendulum-v1", "--data.env_kwargs.g=heavy"),
     "Pendulum-v1|env_kwargs", True, "shows itself in the first step"),
    ("a time limit that is text", env("Pendulum-v1", "--data.env_kwargs.max_episode_steps=long"),
     "max_episode_steps"),
    # Spaces
    ("discrete actions", bad("SpaceDiscrete"), "action"),
    ("several discrete actions", bad("SpaceMulti"), "action"),
    ("a tuple of actions", bad("SpaceTuple"), "action"),
    ("a table of actions", bad("SpaceTable"), "action"),
    ("a number for an action", bad("SpaceScalar"), "action"),
    ("a tuple of observations", bad("SpaceTuples"), "observation"),
    ("a discrete observation", bad("SpaceNumber"), "observation"),
    ("images", bad("SpaceImage"), "observation"),
    ("text among the observations", bad("SpaceText"), "said|observation"),
    ("text for observations", bad("SpaceTexts"), "said|observation"),
    ("5 observations for 3", bad("SpaceFive"), "observation|dimensions"),
    ("2 actions for 1", bad("SpaceTwo"), "action|dimensions"),
    ("CartPole for Pendulum", env("CartPole-v1"), "CartPole-v1"),
    ("keys of a vector", env("Pendulum-v1", "--data.observation_keys=[a]"), "observation_keys"),
    ("a goal of a vector", env("Pendulum-v1", "--data.goal_key=goal"), "goal_key"),
    ("unbounded actions, to imagine", online("SpaceUnbounded"), "bound|action"),
    ("half-open actions, to imagine", online("SpaceHalf"), "bound|action"),
    ("discrete actions, to learn in", online("SpaceDiscrete"), "action"),
    ("NaN observations, to learn in", online("BadNan"), "NaN|finite|observation", True),
    # Rollouts
    ("its reset raises", bad("BadReset"), "BadReset|no reset", True, "known only when it is tried"),
    ("an old reset", bad("BadOldReset"), "BadOldReset|reset", True),
    ("observations of another shape", bad("BadShape"), "BadShape|observation|shape", True),
    ("NaN observations", bad("BadNan"), "NaN|finite|observation", True),
    ("its step raises", bad("BadStep"), "BadStep|no step", True),
    ("an old step", bad("BadOldStep"), "BadOldStep|step", True),
    ("NaN rewards", bad("BadReward"), "NaN|finite|reward|return", True,
     "a return of NaN would choose the best checkpoint"),
]  # fmt: skip
TABLE = [Attack(name, args, words, *more) for name, args, words, *more in ROWS]
