"""Datasets written by predict: exact, resumable, and read by everyone."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import h5py
import minari
import numpy as np
import pytest
import torch
from helpers import diffrl_command, fit_args
from modules.role_tester import quiet_trainer, ready

from diffrl_lightning import (
    DataSynthesizer,
    GaussianActing,
    InputError,
    Role,
    SampleWriter,
    SequenceData,
    SynthesisSampling,
    TrajectorySynthesizer,
    TransitionData,
)
from diffrl_lightning.callbacks.versions import versions
from diffrl_lightning.cli import main

SMALL = {"hidden_dim": 16, "num_blocks": 1, "embed_dim": 16}


@pytest.fixture
def checkpoint(tmp_path, pendulum_file):
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(DataSynthesizer(3, 1, **SMALL), datamodule=TransitionData(str(pendulum_file)))
    trainer.save_checkpoint(tmp_path / "synthesizer.ckpt")
    return str(tmp_path / "synthesizer.ckpt")


def predict_args(pendulum_file, checkpoint, output, *more):
    args = fit_args(pendulum_file, role="data_synthesizer")[1:]
    return ["predict", *args, f"--ckpt_path={checkpoint}", f"--synthesis.output={output}", *more]


def read(path):
    with h5py.File(path) as file:
        arrays = {name: file[name][:] for name in file if name != "metadata"}
        return arrays, {name: value[()] for name, value in file["metadata"].items()}


def test_versions_of_what_is_not_installed():
    assert versions("numpy", "no-such-package") == {
        "numpy": np.__version__,
        "no-such-package": "not installed",
    }


def test_a_file_that_everyone_reads(tmp_path, monkeypatch, pendulum_file, checkpoint):
    monkeypatch.chdir(tmp_path)
    options = ("--synthesis.num_samples=250", "--synthesis.shard_size=100", "--synthesis.seed=3")
    main(predict_args(pendulum_file, checkpoint, "new.hdf5", *options))
    arrays, metadata = read("new.hdf5")
    assert {name: array.shape for name, array in arrays.items()} == {
        "observations": (250, 3),
        "actions": (250, 1),
        "rewards": (250,),
        "next_observations": (250, 3),
        "terminals": (250,),
        "timeouts": (250,),
    }
    assert (arrays["terminals"] ^ arrays["timeouts"]).all(), "every transition is an episode"
    provenance = json.loads(metadata["provenance"])
    assert provenance["role"] == "DataSynthesizer"
    assert provenance["num_samples"] == 250
    assert provenance["seed"] == 3
    assert provenance["trained_on"] == [str(pendulum_file)]
    assert provenance["diffrl_lightning"][0].isdigit()
    assert not list(tmp_path.glob("*.part*"))

    data = ready(TransitionData("new.hdf5", val_fraction=0.0))
    assert data.make_env().spec.id == "Pendulum-v1"
    batch = data.train_data.__getitems__(list(range(250)))
    for name in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(batch[name], arrays[name])
    np.testing.assert_array_equal(batch["terminations"], arrays["terminals"])

    module = Role.load_from_checkpoint(checkpoint)
    entropy = int(np.random.SeedSequence([3, 2]).generate_state(1)[0])
    last = module.sample(50, generator=torch.Generator().manual_seed(entropy))
    np.testing.assert_array_equal(arrays["observations"][200:], last["observations"])


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path, monkeypatch, pendulum_file, checkpoint):
    """The same rows as one process draws without a break."""
    monkeypatch.chdir(tmp_path)
    slow = ("--synthesis.num_samples=390", "--synthesis.shard_size=20")
    slow += ("--synthesis.sampling=SynthesisSampling",)
    slow += ("--synthesis.sampling.num_inference_steps=601",)
    main(predict_args(pendulum_file, checkpoint, "whole.hdf5", *slow))

    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    command = diffrl_command(*predict_args(pendulum_file, checkpoint, "killed.hdf5", *slow, *two))
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parts = tmp_path / "killed.hdf5.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.npz"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert 4 <= len(done) < 20, "the run was to be killed in its middle"
    assert not (tmp_path / "killed.hdf5").exists()

    with pytest.raises(SystemExit):  # other options do not mix
        main([*predict_args(pendulum_file, checkpoint, "killed.hdf5", *slow), "--synthesis.seed=1"])
    assert {p.name: p.stat().st_mtime_ns for p in parts.glob("*.npz")} == done

    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=240)
    expected, _ = read("whole.hdf5")
    found, _ = read("killed.hdf5")
    assert len(found["observations"]) == 390
    assert len(np.unique(found["observations"], axis=0)) == 390, "no row is there twice"
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert not parts.exists()


def test_a_run_killed_while_joining_goes_on(tmp_path, monkeypatch, pendulum_file, checkpoint):
    """All shards are there, and nothing is left to draw."""
    monkeypatch.chdir(tmp_path)
    args = predict_args(pendulum_file, checkpoint, "new.hdf5", "--synthesis.num_samples=50")
    with monkeypatch.context() as patch:
        patch.setattr("diffrl_lightning.callbacks.sample_writer.write_dataset", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            main(args)
    assert [p.name for p in (tmp_path / "new.hdf5.parts").glob("*.npz")] == ["000000.npz"]
    main(args)
    assert len(read("new.hdf5")[0]["rewards"]) == 50


def test_damaged_shards_are_drawn_again(tmp_path, monkeypatch, pendulum_file, checkpoint):
    """Those of a run that was killed, whatever cut them off."""
    monkeypatch.chdir(tmp_path)
    sizes = ("--synthesis.num_samples=50", "--synthesis.shard_size=10")
    main(predict_args(pendulum_file, checkpoint, "whole.hdf5", *sizes))
    args = predict_args(pendulum_file, checkpoint, "new.hdf5", *sizes)
    with monkeypatch.context() as patch:
        patch.setattr("diffrl_lightning.callbacks.sample_writer.write_dataset", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            main(args)
    shards = sorted((tmp_path / "new.hdf5.parts").glob("*.npz"))
    content = bytearray(shards[1].read_bytes())
    shards[1].write_bytes(content[: len(content) // 2])
    shards[2].write_bytes(b"")
    content = bytearray(shards[3].read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 255  # a value
    shards[3].write_bytes(content)
    main(args)
    expected, found = read("whole.hdf5")[0], read("new.hdf5")[0]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("content", ["", '{"num_sam', "[]"])
def test_a_damaged_plan_is_named(tmp_path, monkeypatch, pendulum_file, checkpoint, capsys, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.hdf5.parts").mkdir()
    (tmp_path / "new.hdf5.parts" / "plan.json").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        main(predict_args(pendulum_file, checkpoint, "new.hdf5"))
    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "plan.json' is damaged: remove its folder" in last


def test_a_place_where_nothing_can_be_written(tmp_path, pendulum_file):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o555)
    places = ["file/new.hdf5"]
    if not os.access(tmp_path / "locked", os.W_OK):  # root may write everywhere
        places.append("locked/new.hdf5")
    for place in places:
        with pytest.raises(InputError, match="can not be written"):
            SampleWriter(str(tmp_path / place)).setup(quiet_trainer(tmp_path), None, "predict")


FULL = """
import resource, sys
import numpy as np
from diffrl_lightning.data.writers import write_dataset
from diffrl_lightning.types import InputError

n = 2_000
arrays = {k: np.random.rand(n, 3).astype("f4") for k in ("observations", "next_observations")}
arrays |= {"actions": np.zeros((n, 1), "f4"), "rewards": np.zeros(n, "f4")}
np.savez("part.npz", terminations=np.zeros(n, "f4"), **arrays)
for size in (100, 3_000, 30_000, 500_000, 1_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))  # as a disk that is full
    try:
        write_dataset("new.hdf5", ["part.npz"] * 20, {}, None)
    except InputError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_older_file(tmp_path):
    """HDF5 would crash at the end of the process, with exit code -11."""
    (tmp_path / "new.hdf5").write_bytes(b"older")
    result = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert all("'new.hdf5' can not be written (File too large)" in line for line in lines)
    assert (tmp_path / "new.hdf5").read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["new.hdf5", "part.npz"]


@pytest.mark.slow
def test_commands_on_a_full_disk(tmp_path, pendulum_file, checkpoint):
    """One sentence, exit code 2, what was there whole, and nothing half written."""

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    shards = ("--synthesis.num_samples=8000", "--synthesis.shard_size=1000")
    predict = predict_args(pendulum_file, checkpoint, tmp_path / "new.hdf5", *shards)
    large = predict_args(pendulum_file, checkpoint, tmp_path / "large.hdf5", *shards[:1])
    for args, sentence in (
        (predict, "new.hdf5' can not be written"),  # each shard fits, but not all together
        (large, "large.hdf5.parts/000000.npz' can not be written"),
    ):
        result = subprocess.run(
            diffrl_command(*args),
            cwd=tmp_path, preexec_fn=full, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 2, result.stderr
        assert sentence in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "new.hdf5").exists()
    assert not list(tmp_path.rglob(".*"))
    assert len(list((tmp_path / "new.hdf5.parts").glob("*.npz"))) == 8
    subprocess.run(diffrl_command(*predict), cwd=tmp_path, check=True, capture_output=True)
    assert len(read(tmp_path / "new.hdf5")[0]["rewards"]) == 8000


def interrupted(*_):
    raise RuntimeError("interrupted")


def test_a_minari_dataset(tmp_path, monkeypatch, pendulum_file, checkpoint):
    monkeypatch.chdir(tmp_path)
    main(
        predict_args(
            pendulum_file, checkpoint, "synthetic/pendulum-v0", "--synthesis.num_samples=60"
        )
    )
    dataset = minari.load_dataset("synthetic/pendulum-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (60, 60)
    assert json.loads(dataset.storage.metadata["description"])["num_samples"] == 60
    episodes = list(dataset.iterate_episodes())
    batch = ready(TransitionData("synthetic/pendulum-v0", val_fraction=0.0)).train_data[
        torch.arange(60)
    ]
    for i, episode in enumerate(episodes):
        assert episode.observations.shape == (2, 3)
        np.testing.assert_array_equal(batch["next_observations"][i], episode.observations[1])
    with pytest.raises(InputError, match="is there already"):
        SampleWriter("synthetic/pendulum-v0").setup(quiet_trainer(tmp_path), None, "predict")


def test_trajectories_make_episodes(tmp_path, pendulum_file):
    """Planners can be trained on them."""
    data = SequenceData(str(pendulum_file), horizon=8)
    module = TrajectorySynthesizer(3, 1, horizon=8, dim=16, dim_mults=(1, 2))
    module.fit_normalizers(ready(data))
    output = str(tmp_path / "windows.hdf5")
    writer = SampleWriter(output, num_samples=30, shard_size=20)
    trainer = quiet_trainer(tmp_path, callbacks=[writer])
    assert not trainer.predict(module.eval(), datamodule=data)
    arrays, metadata = read(output)
    assert arrays["timeouts"].sum() == 30
    assert len(arrays["rewards"]) == 30 * 7
    assert metadata["env_id"] == b"Pendulum-v1"
    windows = ready(SequenceData(output, horizon=4, val_fraction=0.0))
    assert windows.episodes.lengths.tolist() == [7] * 30
    np.testing.assert_array_equal(
        windows.episodes.observations[1:8], arrays["next_observations"][:7]
    )


def test_predict_needs_an_output(tmp_path, pendulum_file):
    with pytest.raises(InputError, match=r"say where with synthesis\.output"):
        quiet_trainer(tmp_path).predict(
            DataSynthesizer(3, 1, **SMALL), datamodule=TransitionData(str(pendulum_file))
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output": "new.csv"}, "neither a file that ends in .hdf5 nor a Minari id"),
        ({"output": "a-v0", "num_samples": 2_000_000}, "write a file that ends in .hdf5"),
        ({"output": "a.hdf5", "sampling": GaussianActing()}, "use SynthesisSampling"),
        ({"output": "a.hdf5", "sampling": SynthesisSampling(num_inference_steps=4)}, "must be odd"),
        ({"num_samples": 0}, "must be at least 1"),
    ],
)
def test_bad_input(tmp_path, kwargs, message):
    with pytest.raises(InputError, match=message):
        SampleWriter(**kwargs).setup(
            quiet_trainer(tmp_path), DataSynthesizer(3, 1, **SMALL), "predict"
        )


def test_values_that_are_not_finite_are_refused(tmp_path, pendulum_file, checkpoint):
    module = Role.load_from_checkpoint(checkpoint)
    torch.nn.init.constant_(module.ema.net.last.bias, torch.nan)
    writer = SampleWriter(str(tmp_path / "new.hdf5"), num_samples=5)
    with pytest.raises(InputError, match="are NaN or infinite"):
        quiet_trainer(tmp_path, callbacks=[writer]).predict(
            module, datamodule=TransitionData(str(pendulum_file))
        )
    assert not list((tmp_path / "new.hdf5.parts").glob("*.npz"))


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from diffrl_lightning.data.writers import write_dataset

folder, count = Path(sys.argv[1]), int(sys.argv[2])
n = 20_000
names = {"observations": 17, "next_observations": 17, "actions": 6}
arrays = {k: np.random.rand(n, d).astype("f4") for k, d in names.items()}
arrays |= {"rewards": np.zeros(n, "f4"), "terminations": np.zeros(n, "f4")}
np.savez(folder / "part.npz", **arrays)
write_dataset(str(folder / f"{count}.hdf5"), [folder / "part.npz"] * count, {}, None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path):
    peaks = [
        int(
            subprocess.check_output(
                [sys.executable, "-c", MEMORY, tmp_path, str(count)], stderr=subprocess.DEVNULL
            )
        )
        for count in (2, 20)
    ]
    assert peaks[1] < peaks[0] + 20, peaks  # MiB; the larger file has 66 more


def test_sigterm_ends_a_prediction_between_two_shards(
    tmp_path, monkeypatch, pendulum_file, checkpoint
):
    """What is drawn stays, and the same command goes on."""
    monkeypatch.chdir(tmp_path)
    sizes = ("--synthesis.num_samples=60", "--synthesis.shard_size=20")
    args = predict_args(pendulum_file, checkpoint, "new.hdf5", *sizes)
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "_path", terminated(SampleWriter._path))
        with pytest.raises(SystemExit) as ended:
            main(args)
    assert ended.value.code == 143
    assert [p.name for p in (tmp_path / "new.hdf5.parts").glob("*.npz")] == ["000000.npz"]
    main(args)
    assert len(read("new.hdf5")[0]["rewards"]) == 60


def terminated(path):
    """A signal while the first shard is written."""

    def found(self, shard):
        if getattr(self, "_plan", None):
            os.kill(os.getpid(), signal.SIGTERM)
        return path(self, shard)

    return found
