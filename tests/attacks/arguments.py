"""Bad arguments of fit, test, predict and the tools: out of range, unknown, or not to be had."""

from __future__ import annotations

from typing import Any

from conftest import write_d4rl

from attacks.world import Attack, World


def fit(*options: str, role: str = "diffuser") -> Any:
    return lambda world: world.fit(None, *options, role=role)


def predict(*options: Any) -> Any:
    """A prediction of few samples."""
    return lambda world: [
        "predict",
        *world.fit(role="data_synthesizer")[1:],
        f"--ckpt_path={world.good / 'data_synthesizer.ckpt'}",
        "--synthesis.num_samples=20",
        *(option(world) if callable(option) else option for option in options),
    ]


def tool(*args: Any) -> Any:
    return lambda world: [a(world) if callable(a) else a for a in args]


def data(world: World) -> str:
    return world.data


def planner(world: World) -> Any:
    return world.good / "diffuser.ckpt"


def outside(option: str, role: str = "diffuser", words: str = "") -> tuple[str, Any, str]:
    """A row of an option out of range."""
    name = option.partition("=")[0].rpartition(".")[2]
    return f"{role}: {option}", fit(f"--{option}", role=role), words or name


RANGES = [
    outside("model.lr=-1"),
    outside("model.lr=nan"),
    outside("model.weight_decay=-1"),
    outside("model.adam_betas=[0.9,1.5]"),
    outside("model.ema_decay=1.5"),
    outside("model.dim=0"),
    outside("model.num_train_timesteps=0"),
    outside("model.alpha=-1", "td3_bc"),
    outside("model.discount=1.5", "td3_bc"),
    outside("model.tau=nan", "diffusion_ql"),
    outside("model.dropout=1.5", "idql"),
    outside("model.hidden_dim=-4", "idql"),
    outside("model.expectile=nan", "idql"),
    outside("model.cond_drop_prob=2", "decision_diffuser"),
    outside("data.horizon=0"),
    outside("data.batch_size=0"),
    outside("data.val_fraction=nan"),
    outside("data.join_episodes=-5"),
    outside("data.discount=inf"),
    outside("data.ref_scores=[nan,1]"),
    outside("rollout.acting.temperature=-1"),
    outside("rollout.acting.temperature=nan"),
    outside("rollout.seed=-5"),
    outside("data.env_kwargs.max_episode_steps=0"),
    outside("trainer.gradient_clip_val=-1"),
    outside("trainer.max_steps=-7"),
    outside("trainer.accumulate_grad_batches=0"),
    outside("trainer.limit_val_batches=-1"),
    ("a seed below 0", fit("--seed_everything=-1"), "seed"),
    ("a seed beyond 64 bits", fit("--seed_everything=99999999999999999999"), "seed"),
    ("less than no samples", predict("--synthesis.num_samples=-3"), "num_samples"),
    ("generate: no steps", tool("generate", "pointmaze/umaze", "--num_steps=0"), "num_steps"),
    ("generate: NaN for noise", tool("generate", "pointmaze/umaze", "--num_steps=50",
                                     "--action_noise=nan"), "action_noise"),
    ("controls: no episodes", tool("controls", "--num_episodes=0"), "num_episodes"),
    ("quality: no rows", tool("quality", data, data, "--num_rows=0"), "num_rows"),
]  # fmt: skip

OTHERS = [
    # Commands
    ("an unknown command", tool("trian"), "fit|train|trian"),
    ("no configuration", tool("fit"), "-c"),
    ("a misspelt configuration", tool("fit", "-c", "diffuser/hoper"), "diffuser/hopper"),
    ("an unknown option", fit("--trainer.speed=3"), "speed"),
    ("a misspelt option", fit("--model.dimm=8"), "dim"),
    ("an option without its value", fit("--model.dim"), "model"),
    ("a word too many", fit("quickly"), "quickly"),
    ("a tool's unknown option", tool("quality", data, data, "--speed=3"), "speed"),
    ("a tool without its arguments", tool("compare"), "rows"),
    # Names
    ("an unknown role", fit("--model=Difuser"), "Diffuser"),
    ("unknown data", fit("--data=SequenceDat"), "SequenceData"),
    ("data of another kind", fit("--data=TransitionData"), "TransitionData"),
    ("an unknown choice", fit("--model.lr_schedule=slow"), "lr_schedule"),
    ("a way to act of another role", fit("--rollout.acting=QActing"), "QActing"),
    ("an unknown field of acting", fit("--rollout.acting.speed=3"), "speed"),
    ("an unknown accelerator", fit("--trainer.accelerator=quantum"), "accelerator|quantum"),
    ("an unknown strategy", fit("--trainer.strategy=nope"), "strategy|nope"),
    ("an unknown precision", fit("--trainer.precision=7"), "precision"),
    ("no devices", fit("--trainer.devices=0"), "devices"),
    ("an unknown logger", fit("--trainer.logger=Wandb"), "logger|Wandb"),
    ("a misspelt monitor", fit("--checkpoint.monitor=val/retrun_mean"), "monitor"),
    ("an unknown mode", fit("--checkpoint.mode=most"), "mode"),
    # What is not there, or not for this
    ("the best of no run", lambda w: w.test("best"), "best"),
    ("the last of no run", lambda w: w.test("last"), "last", False,
     "Lightning would test new weights"),
    ("a dataset of a planner", tool("predict", "-c", "diffuser/hopper",
                                    lambda w: f"--data.dataset={w.data}"), "Diffuser"),
    ("a prediction to nowhere", predict(), "output"),
    ("a prediction to a text file", predict("--synthesis.output=out.txt"), "out.txt"),
    ("a prediction over a file", predict(
        lambda w: f"--synthesis.output={write_d4rl(w.inputs / 'there.hdf5')}"), "there.hdf5"),
    ("a prediction into a file's folder", predict(
        lambda w: f"--synthesis.output={w.data}/out.hdf5"), "out.hdf5|data.hdf5"),
    ("results into a file's folder", lambda w: w.test(
        planner(w), f"--rollout.results_path={w.data}/results.json"), "results_path|data.hdf5"),
    ("a run into a file's folder", lambda w: w.fit(
        None, f"--trainer.logger.init_args.save_dir={w.data}/runs"), "data.hdf5|save_dir"),
    ("windows longer than episodes", fit("--data.horizon=128"), "episode"),
    ("a horizon that does not divide", fit("--data.horizon=7"), "horizon"),
    ("a dataset beyond the list", fit("--data.train_on=[3]"), "train_on"),
    ("scores the wrong way round", fit("--data.ref_scores=[5,1]"), "ref_scores"),
    ("a schedule without an end", fit("--model.lr_schedule=cosine", "--trainer.max_steps=-1",
                                      "--trainer.max_epochs=-1"), "lr_schedule"),
    ("relabel: another suffix", tool("relabel", data, planner, "out.npz"), "output|out.npz"),
    ("skill-error: a planner", tool("skill-error", data, planner), "LatentSkills"),
    ("imagination-error: a planner", tool("imagination-error", "Pendulum-v1", planner),
     "DynamicsAgent|Diffuser"),
    ("dynamics-error: no models", tool("dynamics-error", data, "{}"), "models"),
    ("dynamics-error: a planner", tool("dynamics-error", data, lambda w: f"{{a: {planner(w)}}}"),
     "Diffuser"),
    ("quality: the name of a control", tool("quality", data, lambda w: f"{{real: {w.data}}}"),
     "real"),
    ("controls: no maze", tool("controls", lambda w: f"--dataset={w.data}"), "maze"),
    ("generate: no maze", tool("generate", "hopper/medium-v0"), "maze"),
    ("compare: unknown rows", tool("compare", "compare/nothing", planner, data), "compare/nothing"),
    ("compare: none of the rows", tool("compare", "compare/plain", planner, data, "--only=[x]"),
     "x"),
    ("configs: an unknown one", tool("configs", "diffuser/hoper"), "diffuser/hopper"),
    ("configs: into a file's folder", tool("configs", "quickstart", "-o",
                                           lambda w: f"{w.data}/mine.yaml"), "mine.yaml|data.hdf5"),
    # Benchmarks and their reports
    ("benchmark: a misspelt one", tool("benchmark", "benchmarks/smok"), "benchmarks/smoke"),
    ("benchmark: no workers", tool("benchmark", "benchmarks/smoke", "--workers=0"), "workers"),
    ("benchmark: an unknown engine", tool("benchmark", "benchmarks/smoke", "--engine=slurm"),
     "engine"),
    ("benchmark: its data are not there", tool("benchmark", "benchmarks/core"), "data_dir"),
    ("benchmark: a configuration of fit", tool("benchmark", "quickstart"), "datasets"),
    ("benchmark: an unknown row", tool(
        "benchmark", "benchmarks/smoke", "--only=[nobody]"), "nobody"),
    ("report: nothing", tool("report"), "results"),
    ("report: no such results", tool("report", "nowhere.json"), "nowhere.json"),
    ("report: data", tool("report", data), "data.hdf5"),
    ("report: a page without tables", tool(
        "report", lambda w: f"--check={w.file('page.md', 'text')}"), "table"),
    ("report: a page of bytes", tool(
        "report", lambda w: f"--update={w.file('bytes.md', bytes([255, 254]))}"), "bytes.md"),
    ("report: a marker without an end", tool("report", lambda w: "--update=" + w.file(
        "open.md", "<!-- diffrl report x.json -->\ntext\n")), "end"),
    ("report: code in place of results", tool("report", lambda w: w.file(
        "code.json", "!!python/object/apply:os.system [touch canary]")), "code.json"),
]  # fmt: skip
TABLE = [Attack(name, args, words, *more) for name, args, words, *more in (*RANGES, *OTHERS)]
