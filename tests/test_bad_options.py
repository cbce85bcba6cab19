"""Bad options and configurations: one sentence before anything is built, and no code of theirs runs."""

import re

import pytest
from helpers import fit_args

from diffrl_lightning.cli import main

JARGON = re.compile(
    r"Union|NestedArg|<class|jsonargparse|typing\.|NoneType|Parser key|\bint\b|\bstr\b"
)
QUICK = ("fit", "-c", "quickstart")


def sentence(*args, capsys):
    """What a command ends with: one line on the standard error, after its name."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, args)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    said = re.fullmatch(r"diffrl[a-z -]*: error: (.+[.?])", line)[1]
    assert not JARGON.search(said), said
    return said


NUMBERS = [
    ("trainer.gradient_clip_val=-1", "gradient_clip_val=-1 must be at least 0."),
    ("trainer.max_steps=-5", "max_steps=-5 must be at least -1."),
    ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0 must be at least 1."),
    ("checkpoint.save_top_k=-3", "save_top_k=-3 must be at least -1."),
    ("seed_everything=-1", "seed_everything=-1 must be at least 0."),
    ("rollout.acting.temperature=.nan", "temperature=nan must be a finite number."),
    ("rollout.seed=-5", "seed=-5 must be at least 0."),
    ("data.env_kwargs.max_episode_steps=0", "max_episode_steps=0 must be at least 1."),
    ("data.ref_scores=[.nan,1]", "ref_scores=(nan, 1.0) must be a finite number in every entry."),
    ("model.lr=-1", "lr=-1.0 must be above 0."),
    ("model.lr=.nan", "lr=nan must be a finite number."),
    ("model.dim=0", "dim=0 must be at least 1."),
    ("model.dim=1000000000", "dim=1000000000 must be at most 16384."),
]
KINDS = [
    ("model.lr=abc", "lr=abc must be a number."),
    ("model.dim=8.5", "dim=8.5 must be a whole number."),
    ("model.compile=maybe", "compile=maybe must be true or false."),
    ("model.adam_betas=[0.9]", "adam_betas=[0.9] must be a list of 2."),
    ("model.lr_schedule=foo", "lr_schedule=foo must be one of 'constant', 'cosine'."),
    ("trainer.gradient_clip_val=x", "trainer.gradient_clip_val=x must be a number or null."),
    ("trainer=3", "trainer=3 must hold options by name, or be a YAML file of them."),
]
NAMES = [
    ("nam=3", "diffrl fit has no 'nam': did you mean 'name'?"),
    ("trainer.max_step=3", "trainer has no 'max_step': did you mean 'max_steps'?"),
    ("rollout.acting.temprature=1", "PlanActing has no 'temprature': did you mean 'temperature'?"),
    ("model.dims=3", "Diffuser has no 'dims': did you mean 'dim'?"),
    ("model=Difuser", "--model can not be Difuser: did you mean Diffuser?"),
    ("trainer.logger=Foo", "--trainer.logger can not be Foo: name a Logger that can be imported."),
    ("trainer.callbacks=[{class_path: MazeMap, init_args: {num_pints: 3}}]",
     "MazeMap has no 'num_pints': did you mean 'num_points'?"),
]  # fmt: skip
WORDS = [
    ("trainer.accelerator=tpuu", "Lightning refuses these options: You selected an invalid acc"),
    ("trainer.devices=0", "Lightning refuses these options: `Trainer(devices='0')`"),
    ("checkpoint.mode=up", "Lightning refuses these options: `mode` can be"),
    ("ckpt_path=best", "ckpt_path=best names no checkpoint, for this run has written none yet: give"),
    ("ckpt_path=last", "ckpt_path=last names no checkpoint"),
    ("checkpoint.monitor=val/retrun_mean",
     "checkpoint.monitor='val/retrun_mean' is never logged: did you mean 'val/return_mean'?"),
    ("trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val/los}}",
     "EarlyStopping's monitor='val/los' is never logged: did you mean 'val/loss'?"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "said"), [*NUMBERS, *KINDS, *NAMES, *WORDS])
def test_an_option_that_is_not_taken(option, said, tmp_path, monkeypatch, capsys, pendulum_file):
    monkeypatch.chdir(tmp_path)
    assert sentence(*fit_args(pendulum_file), f"--{option}", capsys=capsys).startswith(said)
    assert not list(tmp_path.iterdir()), "something was written"


def test_what_validations_without_rollouts_do_not_log(capsys, pendulum_file):
    options = ("--rollout.val_episodes=0", "--checkpoint.monitor=val/success_rate")
    said = sentence(*fit_args(pendulum_file), *options, capsys=capsys)
    assert said.endswith("is never logged: give rollout.val_episodes above 0, or another one.")


YAML = [
    ("model: [1\nfoo: }", ", line 2, is no plain YAML (expected"),
    ("model:\n\tlr: 3", ", line 2, is no plain YAML (found character '\\t'"),
    ("name: *foo", ", line 1, is no plain YAML (found undefined alias 'foo')"),
    ("name: a\nname: b", ", line 1, is no plain YAML ('name' is given twice)"),
    ("- 1\n- 2", " is a list: it must hold NAME: VALUE lines."),
    ("", " is empty: it must hold NAME: VALUE lines."),
    ("# nothing\n", " is empty: it must hold NAME: VALUE lines."),
    ("hello", " is no dictionary: it must hold NAME: VALUE lines."),
    (bytes(range(256)), " is no text, so no YAML file: give one."),
    ("name: !foo bar", ", line 1, is no plain YAML (could not determine a constructor"),
]


@pytest.mark.parametrize(("text", "said"), YAML)
@pytest.mark.parametrize("command", [(*QUICK, "-c"), ("controls", "--config"), ("compare",)])
def test_a_file_that_is_no_configuration(command, text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    more = ("x.ckpt", "x.hdf5") if command == ("compare",) else ()
    found = sentence(*command, "bad.yaml", *more, capsys=capsys)
    assert found.startswith(f"'bad.yaml'{said}")


FILES = [
    ("nam: 3", "diffrl fit has no 'nam': did you mean 'name'?"),
    ("trainer: {max_step: 3}", "trainer has no 'max_step': did you mean 'max_steps'?"),
    ("trainer: {logger: {class_path: CSVLogger, init_args: {save_dirr: x}}}",
     "CSVLogger has no 'save_dirr': did you mean 'save_dir'?"),
    ("model: {init_args: {dims: 3}}", "Diffuser has no 'dims': did you mean 'dim'?"),
    ("model: {init_arg: {dim: 3}}", "Diffuser has no 'init_arg': did you mean 'init_args'?"),
    ("data: {init_args: {batchsize: 3}}", "SequenceData has no 'batchsize': did you mean"),
    ("rollout: {num_epsiodes: 3}", "rollout has no 'num_epsiodes': did you mean 'num_episodes'?"),
    ("rollout: {acting: {init_args: {temprature: 3}}}", "PlanActing has no 'temprature': did you"),
    ("synthesis: {ouptut: a}", "synthesis has no 'ouptut': did you mean 'output'?"),
    ("checkpoint: {monitr: a}", "checkpoint has no 'monitr': did you mean 'monitor'?"),
    ("model: 3", "--model can not be 3: choose one of BehaviourCloning,"),
    ("model: {class_path: 3}", "--model can not be 3: choose one of BehaviourCloning,"),
    ("model: {class_path: nowhere.Thing}", "--model can not be nowhere.Thing: choose one of"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), FILES)
def test_a_key_that_a_file_has_wrong(text, said, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text(text)
    found = sentence(*QUICK, "-c", tmp_path / "bad.yaml", capsys=capsys)
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["quality", "a", "b", "--num_row=3"], "diffrl quality has no 'num_row': did you mean"),
        (["quality", "a", "b", "--num_rows=x"], "num_rows=x must be a whole number."),
        (["quality", "a", "b", "--num_rows=0"], "num_rows=0 must be at least 1."),
        (["quality"], "the following arguments are required: real, synthetic."),
        (["generate", "pointmaze/x", "--num_steps=0"], "num_steps=0 must be at least 1."),
        (["generate", "pointmaze/x", "--seed=-1"], "seed=-1 must be at least 0."),
        (["dynamics-error", "a", "b"], "models=b must be a dictionary."),
        (["dynamics-error", "a", "{m: b}", "--horizons=[0]"], "horizons=[0] must be at least 1"),
        (["value-ranks", "a", "b", "--batch_siz=3"], "diffrl value-ranks has no 'batch_siz': did"),
        (["compare", "x", "y"], "the following arguments are required: dataset."),
        ([*QUICK, "junk"], "'junk' is no option: write --NAME=VALUE, and -c before a config"),
        (["configs", "quickstart", "--output", "nowhere/x"], "'nowhere/x' can not be written"),
    ],
)
def test_tools_and_words(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence(*args, capsys=capsys).startswith(said)


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:subprocess.Popen [['touch', '{}']]",
    "!!python/object/apply:subprocess.check_call [['touch', '{}']]",
]
CALLS = [
    "{{class_path: os.system, init_args: {{command: touch {}}}}}",
    "{{class_path: subprocess.Popen, init_args: {{args: [touch, {}]}}}}",
    "{{class_path: subprocess.check_call, init_args: {{popenargs: [touch, {}]}}}}",
]
PLACES = [
    "model: {}",
    "data: {}",
    "trainer: {{logger: {}}}",
    "trainer: {{callbacks: [{}]}}",
    "trainer: {{strategy: {}}}",
    "trainer: {{plugins: {}}}",
    "trainer: {{profiler: {}}}",
    "rollout: {{acting: {}}}",
    "synthesis: {{sampling: {}}}",
]


RUNS = [
    *[(place, CALLS[i % len(CALLS)]) for i, place in enumerate(PLACES)],
    *[(place, tag) for place in PLACES for tag in TAGS],
]


@pytest.mark.parametrize(("place", "code"), RUNS)
def test_no_configuration_runs_code(place, code, tmp_path, capsys):
    canary = tmp_path / "pwned"
    (tmp_path / "evil.yaml").write_text(place.format(code.format(canary)))
    said = sentence(*QUICK, "-c", tmp_path / "evil.yaml", capsys=capsys)
    assert "is no plain YAML" in said if code in TAGS else " can not be " in said
    assert not canary.exists()


@pytest.mark.parametrize("code", TAGS)
def test_no_row_of_a_comparison_runs_code(code, tmp_path, capsys):
    canary = tmp_path / "pwned"
    (tmp_path / "rows.yaml").write_text(f"a: {code.format(canary)}")
    said = sentence("compare", tmp_path / "rows.yaml", "x.ckpt", "x.hdf5", capsys=capsys)
    assert "is no plain YAML" in said
    assert not canary.exists()


# A value of any kind, which the parser would take for a class to build, to see whether it is built.
BUILT = "{{class_path: logging.FileHandler, init_args: {{filename: {}}}}}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["imagination-error", "Pendulum-v1", "x.ckpt", "--env_kwargs={x: %s}"], "There is no che"),
        (["dynamics-error", "DATA", "{m: x.ckpt}", "--sampling={m: {a: %s}}"], "There is no check"),
        (["fit", "--data.env_kwargs={x: %s}"], "Environment 'Pendulum-v1' can not be made"),
        (["fit", "--trainer.callbacks={class_path: LambdaCallback, init_args: {setup: %s}}"],
         "setup={'class_path': 'logging.FileHandler'"),
    ],
)  # fmt: skip
def test_values_of_any_kind_build_nothing(args, said, tmp_path, monkeypatch, capsys, pendulum_file):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "pwned"
    args = [a.replace("%s", BUILT.format(canary)).replace("DATA", str(pendulum_file)) for a in args]
    if args[0] == "fit":
        args = fit_args(pendulum_file, *args[1:])
    assert sentence(*args, capsys=capsys).startswith(said)
    assert not canary.exists()
