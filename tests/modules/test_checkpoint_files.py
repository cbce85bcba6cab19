"""Checkpoint files are written whole, and read with care."""

import os
import time
import zipfile

import pytest
import torch

from diffrl_lightning import TD3BC, Diffuser, InputError, LatentQ, Role, TransitionData
from diffrl_lightning.files import whole_file
from diffrl_lightning.modules.checkpoint_files import read_checkpoint
from modules.role_tester import quiet_trainer, saved, small_prior


@pytest.fixture
def checkpoint(tmp_path):
    """Of a small Diffuser, as a dictionary."""
    module = Diffuser(3, 1, horizon=8, dim=8, dim_mults=(1, 2), num_train_timesteps=8)
    return torch.load(saved(module, tmp_path / "good.ckpt"), weights_only=True)


def refused(checkpoint, path, message):
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=message):
        Role.load_from_checkpoint(path)


def test_a_flipped_byte_is_seen_wherever_it_is(tmp_path, checkpoint):
    good = (tmp_path / "good.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "good.ckpt") as archive:
        contents = [archive.read(member) for member in archive.infolist()]
    for content in [content for content in contents if len(content) > 100][::5]:
        bad = bytearray(good)
        bad[good.index(content) + len(content) // 2] ^= 1
        (tmp_path / "bad.ckpt").write_bytes(bad)
        with pytest.raises(InputError, match=r"bad.ckpt' is damaged .*checksum"):
            read_checkpoint(tmp_path / "bad.ckpt")


def test_what_is_no_checkpoint_is_called_so(tmp_path, checkpoint):
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "dangling.ckpt").symlink_to(tmp_path / "nowhere")
    for name in ("none", "pipe", "folder", "dangling"):
        with pytest.raises(InputError, match=f"There is no checkpoint .*{name}.ckpt"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    (tmp_path / "bytes.ckpt").write_bytes(os.urandom(1000))
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
    for name, reason in (("bytes", "BadZipFile"), ("bomb", "compressed")):
        with pytest.raises(InputError, match=f"damaged or no checkpoint .*{reason}"):
            read_checkpoint(tmp_path / f"{name}.ckpt")


def test_weights_are_those_of_the_role(tmp_path, checkpoint):
    path, state = tmp_path / "a.ckpt", checkpoint["state_dict"]
    weight = "denoiser.down.0.0.conv_in.0.weight"
    bad = {
        "missing": {k: v for k, v in state.items() if k != weight},
        "unknown": state | {"more": torch.zeros(1)},
        "shape": state | {weight: torch.zeros(2)},
        "text": state | {weight: "text"},
    }
    for entries in bad.values():
        refused(checkpoint | {"state_dict": entries}, path, "1 entries are missing, unknown or of")
    for value in (torch.nan, torch.inf):
        entries = state | {weight: torch.full_like(state[weight], value)}
        refused(checkpoint | {"state_dict": entries}, path, f"{weight} is NaN or infinite: use an")
    mean = "trajectory.observations.low"
    entries = state | {mean: torch.full_like(state[mean], torch.nan)}
    refused(checkpoint | {"state_dict": entries}, path, f"{mean} is NaN")


def test_hyper_parameters_take_no_memory_before_the_weights_are_compared(tmp_path, checkpoint):
    hparams = checkpoint["hyper_parameters"]
    for changed in ({"dim": 60_000}, {"dim": "wide"}, {"dim_mults": 3}, {"unknown": 1}):
        message = r"a\.ckpt'(: | holds hyper-parameters that no Diffuser)"
        begin = time.monotonic()
        refused(checkpoint | {"hyper_parameters": hparams | changed}, tmp_path / "a.ckpt", message)
        assert time.monotonic() - begin < 5


def test_companions_are_those_that_the_role_builds_on(tmp_path, pendulum_file):
    module = LatentQ(3, 1, horizon=8, latent_dim=4, hidden_dim=16)
    module.prior = small_prior(pendulum_file)
    path = saved(module, tmp_path / "a.ckpt")
    assert type(Role.load_from_checkpoint(path).prior.skills).__name__ == "LatentSkills"
    checkpoint = torch.load(path, weights_only=True)
    prior = checkpoint["companions"]["prior"]
    for companions in ({"other": prior}, {"prior": prior | {"diffrl_role": "TD3BC"}},
                       {"prior": prior | {"diffrl_role": "Nothing"}}):  # fmt: skip
        refused(checkpoint | {"companions": companions}, path, "a companion '(other|prior)', ")
    for _ in range(100):
        prior = prior | {"companions": {"prior": prior}}
    refused(checkpoint | {"companions": {"prior": prior}}, path, "companion")


def test_lightnings_arguments_are_taken_or_refused(tmp_path, checkpoint):
    path = tmp_path / "good.ckpt"
    Diffuser.load_from_checkpoint(path, strict=True, weights_only=True)
    for options in ({"strict": False}, {"weights_only": False}, {"hparams_file": "hparams.yaml"}):
        with pytest.raises(InputError, match="leave out hparams_file, strict and weights_only"):
            Diffuser.load_from_checkpoint(path, **options)
    assert Diffuser.load_from_checkpoint(path, lr=0.5).hparams["lr"] == 0.5


def test_a_checkpoint_without_noise_or_optimizer_is_not_resumed_by_mistake(tmp_path, pendulum_file):
    data = TransitionData(str(pendulum_file))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(TD3BC(3, 1, hidden_dim=8), datamodule=data)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    whole = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    del whole["noise_seed"]
    assert Role.load_from_checkpoint(tmp_path / "weights.ckpt").loaded_step == 1
    torch.save(whole, tmp_path / "none.ckpt")
    torch.save(whole | {"noise_seed": "a"}, tmp_path / "seed.ckpt")
    messages = {
        "weights": "has no optimizer_states, so that it can not be resumed",
        "none": "has no noise_seed",
        "seed": "noise_seed or global_step is no number",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            quiet_trainer(tmp_path, max_steps=2).fit(
                TD3BC(3, 1, hidden_dim=8), datamodule=data, ckpt_path=tmp_path / f"{name}.ckpt"
            )


def test_a_file_is_written_beside_its_target(tmp_path, monkeypatch, pendulum_file):
    """What was there stays where writing fails, and what killed processes left goes after a day."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(TD3BC(3, 1, hidden_dim=8), datamodule=TransitionData(str(pendulum_file)))
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    good = path.read_bytes()
    for age, number in ((3600, 1), (90_000, 2)):
        leftover = tmp_path / f".a.ckpt.{number}.partial"
        leftover.touch()
        os.utime(leftover, (time.time() - age,) * 2)
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write(b"half") and file.write("text")
    assert path.read_bytes() == good
    trainer.save_checkpoint(path)
    assert sorted(p.name for p in tmp_path.glob(".*")) == [".a.ckpt.1.partial"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can not be written"), whole_file(tmp_path / "file" / "a"):
        pass


def test_loading_draws_no_noise(tmp_path, checkpoint):
    """The check without memory leaves the generator where building the module does."""
    torch.manual_seed(0)
    Diffuser(**checkpoint["hyper_parameters"])
    expected = torch.rand(1)
    torch.manual_seed(0)
    Role.load_from_checkpoint(tmp_path / "good.ckpt")
    assert torch.equal(torch.rand(1), expected)
