"""One command: its help, its tools, names of configurations, and ways to act on the command line."""

import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from test_architecture import parse

from diffrl_lightning import PlanActing, SynthesisSampling, __version__
from diffrl_lightning.cli import LIGHTNING, TOOLS, main
from diffrl_lightning.tools.configs import find_config, shipped_configs
from diffrl_lightning.types import InputError


def said(*args, capsys, code=2):
    """What a command ends with, on the stream where it belongs."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == code
    streams = capsys.readouterr()
    return streams.err if code else streams.out


def acting(config):
    """The fields that files and options have set, without those at their default."""
    chosen = config.rollout.acting.init_args
    return {f.name: chosen[f.name] for f in fields(PlanActing) if chosen[f.name] != f.default}


def test_help_says_what_there_is(capsys):
    for args in ((), ("--help",)):
        main(args)
        text = capsys.readouterr().out
        assert text.startswith("Diffusion models for reinforcement learning")
        assert all(f"\n  {command} " in text for command in LIGHTNING | TOOLS)
    main(["--version"])
    assert capsys.readouterr().out == f"diffrl {__version__}\n"


def test_help_waits_for_no_torch():
    code = "import sys; from diffrl_lightning.cli import main; main([sys.argv[1]])\n"
    for command in ("--help", "configs"):
        check = "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
        run = [sys.executable, "-c", code + check, command]
        assert not subprocess.run(run, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("command", TOOLS)
def test_tools_explain_themselves(command, capsys):
    text = said(command, "--help", capsys=capsys, code=0)
    assert text.startswith(f"usage: diffrl {command} ")


def test_a_wrong_command_names_the_nearest(capsys):
    assert "did you mean 'fit'? There are fit, validate," in said("fti", capsys=capsys)
    assert "use one of fit, validate, test" in said("nothing-like-it", capsys=capsys)


def test_tools_end_bad_input_with_one_sentence(capsys):
    text = said("compare", "nowhere", "x.ckpt", "x.hdf5", capsys=capsys)
    assert text == (
        "diffrl compare: error: 'nowhere' is no file and no shipped configuration: diffrl configs "
        "lists them.\n"
    )
    assert said("relabel", capsys=capsys).startswith("diffrl relabel: error: the following")


def test_configurations_are_listed_printed_and_copied(tmp_path, capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    main(["configs", "diffuser"])
    assert all(n.startswith("diffuser/") for n in capsys.readouterr().out.splitlines())
    main(["configs", "diffuser/hopper"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["model"]["class_path"] == "Diffuser"
    main(["configs", "diffuser/hopper.yaml", "--output", str(tmp_path / "mine.yaml")])
    assert (tmp_path / "mine.yaml").read_text() == text
    folder = said("configs", "diffuser/hopper", "--output", str(tmp_path), capsys=capsys)
    assert "can not be written (it is a folder)" in folder
    assert "near are diffuser/hopper" in said("configs", "difuser/hoper", capsys=capsys)


def test_names_of_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == find_config("quickstart.yaml")
    (tmp_path / "quickstart").write_text("name: mine\n")
    assert str(find_config("quickstart")) == "quickstart"  # files come first
    with pytest.raises(InputError, match="near are quickstart;"):
        find_config("quickstrat")
    for args in (["-c", "idql/hopper"], ["--config=idql/hopper"], ["-c=idql/hopper"]):
        assert parse(["fit", *args], monkeypatch).name == "hopper_idql"


def test_acting_merges_key_by_key(tmp_path, monkeypatch):
    """Over two files and the command line."""
    (tmp_path / "a.yaml").write_text("{rollout: {acting: {init_args: {replan_every: 7}}}}")
    args = ["fit", "-c", "quickstart", "-c", str(tmp_path / "a.yaml")]
    quick = {"num_inference_steps": 8, "temperature": 0.5, "lookahead": 12}
    assert acting(parse(["fit", "-c", "quickstart"], monkeypatch)) == quick
    more = parse([*args, "--rollout.acting.temperature=0.25"], monkeypatch)
    assert acting(more) == quick | {"replan_every": 7, "temperature": 0.25}
    other = parse([*args, "--rollout.acting=SkillActing"], monkeypatch)
    assert other.rollout.acting.class_path == "diffrl_lightning.SkillActing"
    sampled = parse(
        ["predict", "-c", "data_synthesizer/hopper", "--synthesis.sampling.temperature=2"],
        monkeypatch,
    )
    assert sampled.synthesis.sampling.init_args.num_inference_steps == 63


@pytest.mark.parametrize("cls", [PlanActing, SynthesisSampling])
def test_help_prints_every_field(cls, capsys):
    option = f"--rollout.acting.help={cls.__name__}"
    text = said("fit", option, capsys=capsys, code=0)
    for field in fields(cls):
        assert f"--rollout.acting.{field.name} " in text
    assert "network evaluations" in text


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "acting.temprature=1",
            "PlanActing has no 'temprature': did you mean 'temperature'?",
        ),
        ("acting.target_return=1", "PlanActing has no 'target_return': it has sampler, num_inf"),
        ("acting.temperature=x", "temperature=x must be a number."),
        ("acting.sampler=x", "sampler=x must be one of 'ddpm', 'ddim', 'dpmpp'."),
        ("acting=Nonsense", "--rollout.acting can not be Nonsense: choose one of"),
        ("acting=collections.Counter", "--rollout.acting can not be collections.Counter: choose"),
        ("acting.help=Nonsense", "--rollout.acting can not be Nonsense: choose one of"),
    ],
)
def test_ways_to_act_that_there_are_not(option, sentence, capsys):
    text = said("fit", "-c", "quickstart", f"--rollout.{option}", capsys=capsys)
    assert text.startswith(f"diffrl fit: error: {sentence}")
    assert text.count("\n") == 1
    if "choose" in sentence:
        assert "PlanActing (Diffuser), " in text


def test_a_field_needs_its_class(capsys):
    args = ("fit", "-c", "behaviour_cloning/hopper")
    text = said(*args, "--rollout.acting.temperature=1", capsys=capsys)
    assert "--rollout.acting=CLASS: GaussianActing (BehaviourCloning, DynamicsAgent), " in text
    text = said(*args, "--rollout.acting.speed=1", capsys=capsys)
    assert "'speed' is a field of no way to act" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "No configuration is given: add -c FILE or -c NAME"),
        (["-c", "quickstart", "--model.dims=3"], "Diffuser has no 'dims': did you mean 'dim'?"),
        (["-c", "quickstart", "--model=Unet"], "--model can not be Unet: choose one of Behaviour"),
        (["-c", "quickstart", "--data=My"], "--data can not be My: choose one of ChunkData, "),
        (
            ["-c", "quickstart", "--trainer.max_steps=x"],
            "trainer.max_steps=x must be a whole number",
        ),
        (["-c", "quickstart", "--data.ref_scores=x"], "ref_scores=x must be a list or null."),
        (["-c", "quickstart", "--foo=3"], "diffrl fit has no 'foo': it has config, "),
    ],
)
def test_other_arguments_that_there_are_not(options, sentence, capsys):
    text = said("fit", *options, capsys=capsys)
    assert f": error: {sentence}" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "interval", "epochs"),
    [
        ([], 2000, None),
        (["val_check_interval=50"], 50, None),
        (["val_check_interval=1.0"], 1.0, 1),
        (["check_val_every_n_epoch=3"], None, 3),
        (["check_val_every_n_epoch=3", "val_check_interval=0.5"], 0.5, 3),
    ],
)
def test_validation_follows_steps_or_epochs(given, interval, epochs, monkeypatch):
    args = ["fit", "-c", "diffuser/hopper", *(f"--trainer.{option}" for option in given)]
    trainer = parse(args, monkeypatch).trainer
    assert trainer.val_check_interval == interval
    assert trainer.check_val_every_n_epoch == epochs
