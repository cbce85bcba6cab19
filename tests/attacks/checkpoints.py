"""Bad checkpoints: damaged ones, such as would run code, and such as hold what does not fit."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from attacks.world import Attack, Bomb, World, pickled


def spoiled(change: Any, role: str = "diffuser", *options: str) -> Any:
    """A test of a checkpoint that ``change`` spoils, in place or as what it returns."""

    def args(world: World) -> list[Any]:
        state = world.checkpoint(role)
        limit = sys.getrecursionlimit()
        changed = change(state)
        path = world.save(state if changed is None else changed)
        sys.setrecursionlimit(limit)
        return world.test(path, *options, role=role)

    return args


def entries(**values: Any) -> Any:
    return spoiled(lambda state: state.update(values))


def without(name: str) -> Any:
    return spoiled(lambda state: state.pop(name) and None)


def hparams(**values: Any) -> Any:
    """A test of a checkpoint with other hyper-parameters."""
    return spoiled(lambda state: state["hyper_parameters"].update(values))


def weights(change: Any) -> Any:
    """A test of a checkpoint whose first network weight (or all, as ``change`` likes) is another."""

    def spoil(state: dict[str, Any]) -> None:
        weights = state["state_dict"]
        change(weights, next(name for name in weights if name.startswith("denoiser")))

    return spoiled(spoil)


def file(make: Any) -> Any:
    """A test of a file that ``make`` writes or names."""
    return lambda world: world.test(make(world))


def flip(first: float, count: int = 64) -> Any:
    """Bytes are flipped in the middle of a tensor's record."""

    def make(world: World) -> str:
        path = world.good / "diffuser.ckpt"
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            largest = max(
                archive.infolist(), key=lambda info: info.file_size * ("/data/" in info.filename)
            )
        begin = largest.header_offset + 200 + int(first * largest.file_size / 2)
        for i in range(begin, begin + count):
            content[i] ^= 255
        return world.file("bad.ckpt", bytes(content))

    return make


def link(target: str) -> Any:
    def make(world: World) -> Path:
        (world.inputs / "bad.ckpt").symlink_to(target)
        return world.inputs / "bad.ckpt"

    return make


def pipe(world: World) -> Path:
    os.mkfifo(world.inputs / "pipe.ckpt")
    return world.inputs / "pipe.ckpt"


def archive(world: World) -> str:
    with zipfile.ZipFile(world.inputs / "bad.ckpt", "w") as zipped:
        zipped.writestr("archive/data.pkl", pickled(world))
        zipped.writestr("archive/version", "3")
    return str(world.inputs / "bad.ckpt")


def nested(state: dict[str, Any], depth: int = 1000) -> None:
    sys.setrecursionlimit(50_000)  # to save it
    inner = state["companions"]["skills"]
    for _ in range(depth):
        inner = {**state["companions"]["skills"], "companions": {"skills": inner}}
    state["companions"]["skills"] = inner


def companion(**values: Any) -> Any:
    return spoiled(lambda state: state["companions"]["skills"].update(values), "latent_diffusion")


def guided(make: Any) -> Any:
    """A test that is guided by a value of this checkpoint."""
    return lambda world: world.test(
        world.good / "diffuser.ckpt",
        f"--rollout.acting.value_ckpt={make(world)}",
        "--rollout.acting.value_guidance_scale=1",
    )


def built_on(make: Any) -> Any:
    """A fit of what builds on this checkpoint."""
    return lambda world: world.fit(
        None, f"--model.skills_ckpt={make(world)}", role="latent_diffusion"
    )


def resumed(change: Any) -> Any:
    """A fit that goes on from a checkpoint of a run, spoiled."""

    def args(world: World) -> list[Any]:
        state = world.checkpoint("run")
        change(state)
        return world.fit(None, f"--ckpt_path={world.save(state)}", "--trainer.max_steps=4")

    return args


def tool(*args: Any) -> Any:
    """A tool, whose arguments may be made of the world."""
    return lambda world: [a(world) if callable(a) else a for a in args]


NAN = float("nan")
ROWS = [
    # Files
    ("pickled", file(lambda w: w.save({"state_dict": {}, "hyper_parameters": {}, "x": Bomb(w.touch)})),
     "pickle"),
    ("pickled among the hyper-parameters", lambda w: w.test(w.save(
        w.checkpoint() | {"hyper_parameters": {"dim": Bomb(w.touch)}})), "pickle"),
    ("a bare pickle", file(lambda w: w.file("bad.ckpt", pickled(w))), "pickle|damaged"),
    ("a pickle in an archive of torch's", file(archive), "pickle|damaged"),
    ("a pickled function", file(lambda w: w.file("bad.ckpt", pickle.dumps(os.system))),
     "pickle|damaged"),
    ("half of it", file(lambda w: w.file("bad.ckpt", (w.good / "diffuser.ckpt").read_bytes()[:9000])),
     "damaged"),
    ("all but its last bytes", file(lambda w: w.file(
        "bad.ckpt", (w.good / "diffuser.ckpt").read_bytes()[:-100])), "damaged"),
    ("64 flipped bytes in its weights", file(flip(0.5)), "damaged"),
    ("one flipped byte in its weights", file(flip(0.2, 1)), "damaged"),
    ("flipped bytes, to go on from", lambda w: w.fit(None, f"--ckpt_path={flip(0.5)(w)}"),
     "damaged"),
    ("no bytes", file(lambda w: w.file("bad.ckpt")), "damaged|empty"),
    ("text", file(lambda w: w.file("bad.ckpt", "weights")), "damaged|no checkpoint"),
    ("a folder", file(lambda w: w.inputs), "folder|directory"),
    ("a dangling link", file(link("nowhere.ckpt")), "no checkpoint"),
    ("endless zeros", file(link("/dev/zero")), "checkpoint|file"),
    ("a pipe", file(pipe), "pipe|file"),
    # Entries
    ("a tensor alone", spoiled(lambda state: torch.zeros(3)), "checkpoint"),
    ("no state_dict", without("state_dict"), "state_dict|checkpoint"),
    ("no hyper_parameters", without("hyper_parameters"), "hyper_parameters|checkpoint"),
    ("no noise_seed", without("noise_seed"), "noise_seed"),
    ("a noise_seed that is text", entries(noise_seed="seven"), "noise_seed"),
    ("no role", without("diffrl_role"), "role"),
    ("an unknown role", entries(diffrl_role="NoSuchRole"), "NoSuchRole"),
    ("a list of roles", entries(diffrl_role=["Diffuser"]), "role|Diffuser"),
    ("another role", lambda w: w.test(w.good / "data_synthesizer.ckpt"), "DataSynthesizer"),
    ("weights that are a list", entries(state_dict=[1, 2]), "state_dict|weights|checkpoint"),
    ("hyper-parameters that are a list", entries(hyper_parameters=[3, 1]),
     "hyper_parameters|checkpoint"),
    ("companions that are text", entries(companions="skills"), "companion"),
    ("a companion that is a method", entries(companions={"forward": {
        "diffrl_role": "Diffuser", "hyper_parameters": {}, "companions": {}}}),
        "companion|forward"),
    ("a way to act without a class", entries(acting={"num_candidates": 3}), "act"),
    ("a way to act out of range", entries(acting={
        "class_path": "PlanActing", "init_args": {"temperature": NAN}}), "temperature|act"),
    # Weights
    ("no weights", entries(state_dict={}), "weight|state_dict"),
    ("a missing weight", weights(lambda w, name: w.pop(name)), "denoiser|weight"),
    ("a weight too many", weights(lambda w, name: w.update(colour=torch.ones(3))), "colour|weight"),
    ("a weight of another shape", weights(lambda w, name: w.update({name: torch.ones(7, 7)})),
     "denoiser|shape|weight"),
    ("a weight that is text", weights(lambda w, name: w.update({name: "heavy"})),
     "denoiser|weight"),
    ("a NaN weight", weights(lambda w, name: w[name].view(-1)[:1].fill_(NAN)), "NaN|finite"),
    ("NaN in a normaliser", weights(lambda w, name: [
        x.fill_(NAN) for n, x in w.items() if n.startswith("trajectory") and x.is_floating_point()]),
     "NaN|finite"),
    # Hyper-parameters
    ("dim 1e9", hparams(dim=10**9), "dim|memory|weights|shape"),
    ("dim 0", hparams(dim=0), "dim"),
    ("dim that is text", hparams(dim="eight"), "dim"),
    ("dim_mults that is nothing", hparams(dim_mults=None), "dim_mults"),
    ("1e9 steps of diffusion", hparams(num_train_timesteps=10**9),
     "num_train_timesteps|memory|weights"),
    ("other sizes than the weights'", hparams(dim=16), "dim|shape|weight"),
    ("an unknown hyper-parameter", hparams(colour="red"), "colour"),
    ("a class of the system", hparams(_class_path="os.system", _instantiator="os.system", action_dim=5),
     "action_dim|checkpoint|shape"),
    ("data of other dimensions", spoiled(
        lambda s: s["hyper_parameters"].update(observation_dim=5)),
     "weights"),
    # Companions
    ("an unknown companion", companion(diffrl_role="NoSuchRole"), "NoSuchRole"),
    ("a companion without hyper-parameters", spoiled(
        lambda s: s["companions"]["skills"].pop("hyper_parameters") and None, "latent_diffusion"),
     "companion|skills|hyper_parameters"),
    ("a companion of 1e9 units", companion(hyper_parameters={
        "observation_dim": 3, "action_dim": 1, "horizon": 8, "latent_dim": 4, "hidden_dim": 10**9}),
     "hidden_dim|memory|weights|skills|shape"),
    ("a companion of another role", companion(diffrl_role="TD3BC"), "TD3BC|companion|skills"),
    ("companions 1000 deep", spoiled(nested, "latent_diffusion"), "companion|deep|skills"),
    ("a value that is nowhere", guided(lambda w: "nowhere.ckpt"), "nowhere.ckpt"),
    ("a value of endless zeros", guided(link("/dev/zero")), "bad.ckpt"),
    ("a value that is a pipe", guided(pipe), "pipe"),
    ("a value that is pickled", guided(lambda w: w.save(Bomb(w.touch))), "pickle"),
    ("a value that is a planner", guided(lambda w: w.good / "diffuser.ckpt"), "Diffuser"),
    ("skills that are nowhere", built_on(lambda w: "nowhere.ckpt"), "nowhere.ckpt"),
    ("skills that are a planner", built_on(lambda w: w.good / "diffuser.ckpt"), "Diffuser"),
    ("no skills", lambda w: w.fit(role="latent_diffusion"), "skills_ckpt"),
    # Runs to go on from
    ("no optimizer to go on with", resumed(lambda s: s.pop("optimizer_states")), "optimizer"),
    ("no loops to go on with", resumed(lambda s: s.pop("loops")), "loops|checkpoint"),
    ("an optimizer of other weights", resumed(
        lambda s: s["optimizer_states"][0]["param_groups"][0].update(params=[0])), "optimizer"),
    ("weights alone, to go on from", lambda w: w.fit(None, f"--ckpt_path={w.good / 'diffuser.ckpt'}"),
     "checkpoint|loops|optimizer|run"),
    # Tools
    ("a comparison of a pickled one", tool("compare", "compare/plain", lambda w: w.save(Bomb(w.touch)),
                                           lambda w: w.data), "pickle"),
    ("a comparison of nothing", tool("compare", "compare/plain", "none.ckpt", lambda w: w.data),
     "none.ckpt"),
    ("rewards of a planner", tool("relabel", lambda w: w.data, lambda w: w.good / "diffuser.ckpt",
                                  "out.hdf5"), "RelativeReward"),
    ("values of a planner", tool("value-ranks", lambda w: w.data, lambda w: w.good / "diffuser.ckpt"),
     "DiffusedValue"),
]  # fmt: skip
TABLE = [Attack(name, args, words) for name, args, words in ROWS]
