"""Files that hold something else than they should: refused in one sentence, or warned of."""

import io
import os
import time
import tracemalloc
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from conftest import write_d4rl
from modules.role_tester import quiet_trainer, ready

from diffrl_lightning import BehaviourCloning, DiffusionQL
from diffrl_lightning.data import ChunkData, FutureData, SequenceData, TransitionData, Transitions
from diffrl_lightning.data.sources import SourceOptions, load, reader
from diffrl_lightning.data.sources.checks import check_memory
from diffrl_lightning.data.writers import write_episodes
from diffrl_lightning.types import InputError

OPTIONS = SourceOptions()


def describe(path):
    return reader(str(path)).describe(str(path), OPTIONS)


def read(*paths):
    return load([str(path) for path in paths], OPTIONS)


def refused(call, path, match):
    """One sentence, with no way to run code and no large memory on the way."""
    with pytest.raises(InputError, match=match) as error:
        call(path)
    text = str(error.value).replace(str(path.parent), "")
    assert "\n" not in text
    assert text.endswith(".")


def changed(path, change):
    """A file of D4RL's layout, changed."""
    with h5py.File(write_d4rl(path), "a") as file:
        change(file)
    return path


def array(name, **keywords):
    """A change that puts another array in the place of one."""

    def change(file):
        del file[name]
        file.create_dataset(name, **keywords)

    return change


def put(name, make):
    def change(file):
        if name in file:
            del file[name]
        file[name] = make(file)

    return change


def external_rows(file):
    (rows := np.zeros((1000, 3), "f4")).tofile(f"{file.filename}.raw")
    size = (f"{file.filename}.raw", 0, rows.nbytes)
    array("observations", shape=rows.shape, dtype="f4", external=[size])(file)


def virtual_rows(file):
    layout = h5py.VirtualLayout((1000, 3), "f4")
    layout[:] = h5py.VirtualSource("missing.h5", "observations", (1000, 3))
    del file["observations"]
    file.create_virtual_dataset("observations", layout)


HUGE = {"shape": (10**9, 3), "dtype": "f4"}
HDF5 = {
    "external link": (
        put("observations", lambda _: h5py.ExternalLink("other.h5", "/observations")),
        "is a link to another file, 'other.h5'",
    ),
    "link to an external link": (
        lambda file: (
            put("hidden", lambda _: h5py.ExternalLink("other.h5", "/"))(file),
            put("actions", lambda _: h5py.SoftLink("/hidden/actions"))(file),
        ),
        "is a link to another file",
    ),
    "metadata elsewhere": (
        put("metadata", lambda _: h5py.ExternalLink("other.h5", "/metadata")),
        "metadata/ref_min_score is a link to another file",
    ),
    "one value elsewhere": (
        put("metadata/env_id", lambda _: h5py.ExternalLink("other.h5", "/a")),
        "metadata/env_id is a link to another file",
    ),
    "dangling link": (put("actions", lambda _: h5py.SoftLink("/none")), "which the file does not"),
    "circle of links": (put("actions", lambda _: h5py.SoftLink("actions")), "does not have"),
    "external storage": (external_rows, "has its values in another file"),
    "virtual array": (virtual_rows, "is a virtual array"),
    "hollow": (array("observations", **HUGE), "only 0 of 12000000000 bytes"),
    "hollow chunks": (
        array("observations", **HUGE, chunks=(1000, 3), compression="gzip"),
        "only 0 of 1000000 chunks",
    ),
    "cut off": (array("rewards", shape=(1000,), dtype="f4", chunks=(100,)), "only 0 of 10 chunks"),
    "no shape": (put("rewards", lambda _: h5py.Empty("f4")), "is an empty array"),
    "no columns": (put("actions", lambda _: np.zeros((1000, 0), "f4")), "has no columns"),
    "a single number": (put("observations", lambda _: 1.0), "one row a step"),
    "a group": (put("actions/a", lambda _: 1.0) and put("terminals", lambda f: f.create_group("g")),
                "a group 'terminals'"),
    "scores in a row": (
        put("metadata/ref_min_score", lambda _: np.zeros(7)),
        "metadata/ref_min_score must be a single value",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HDF5)
def test_hdf5_files_that_are_not_read(tmp_path, case):
    change, match = HDF5[case]
    path = changed(tmp_path / "a.hdf5", change)
    tracemalloc.start()
    begin = time.monotonic()
    refused(describe, path, match)
    assert time.monotonic() - begin < 1
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_links_within_a_file_are_followed(tmp_path):
    def change(file):
        file.move("observations", "data/of/states")
        file["observations"] = h5py.SoftLink("/data/of/states")

    path = changed(tmp_path / "A.HDF5", change)
    expected = read(write_d4rl(tmp_path / "b.hdf5"))
    np.testing.assert_array_equal(read(path).observations, expected.observations)


@pytest.mark.parametrize("scores", [(np.nan, 1.0), ("low", "high"), (1.0, 0.0)])
def test_scores_that_are_no_scale_need_the_users(tmp_path, scores):
    path = write_d4rl(tmp_path / "a.hdf5", observation_dim=4)
    with h5py.File(path, "a") as file:
        file["metadata/ref_min_score"], file["metadata/ref_max_score"] = scores
    with pytest.raises(InputError, match="must be a lower and a higher return: give ref_scores"):
        TransitionData(str(path))
    assert TransitionData(str(path), ref_scores=(0.0, 1.0)).ref_scores == (0.0, 1.0)


def test_scores_in_arrays_of_one(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", observation_dim=4)
    with h5py.File(path, "a") as file:
        file["metadata/ref_min_score"], file["metadata/ref_max_score"] = np.zeros(1), np.ones(1)
    assert describe(path).ref_scores == (0.0, 1.0)


def one_bad(value, row=7, dtype=np.float32):
    rows = np.zeros(1000, dtype)
    rows[[row, 999]] = value, 1
    return rows


def following(row):
    rows = np.zeros((1000, 3), np.float32)
    rows[row] = np.nan
    return rows


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"terminals": one_bad(np.nan)}, "terminals must be 0 or 1, but row 7 is nan"),
        ({"terminals": one_bad(0.5)}, "terminals must be 0 or 1, but row 7 is 0.5"),
        ({"terminals": one_bad(2, dtype=np.int64)}, "terminals must be 0 or 1, but row 7 is 2"),
        ({"timeouts": one_bad(np.nan)}, "timeouts must be 0 or 1, but row 7 is nan"),
        ({"next_observations": following(12)}, "next_observations hold NaN .* row 12"),
        ({"next_observations": following(999)}, "next_observations hold NaN .* row 999"),
        ({"rewards": one_bad(np.inf)}, "rewards hold NaN or infinite values"),
    ],
)
def test_values_that_are_refused(tmp_path, arrays, match):
    refused(read, write_d4rl(tmp_path / "a.hdf5", **arrays), match)


def damaged(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.hdf5", "A.H5", "a.npz"])
def test_files_that_are_called_wrongly(tmp_path, name):
    path = tmp_path / name
    kind = "npz" if name.endswith("npz") else "HDF5"
    noise = np.random.default_rng(0).bytes(999)
    for content in (noise, b"", b"version https://git-lfs.github.com/spec/v1"):
        refused(describe, damaged(path, content), f"not a readable {kind} file")
    path.unlink()
    refused(describe, path, "There is no file")
    path.symlink_to(tmp_path / "none")
    refused(describe, path, "a link to a file that is not there")
    path.unlink()
    path.mkdir()
    refused(describe, path, "is a folder")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_files_that_are_cut_off(tmp_path, share):
    for path in (write_d4rl(tmp_path / "a.hdf5"), write_npz(tmp_path / "a.npz")):
        content = path.read_bytes()
        refused(read, damaged(path, content[: int(share * len(content))]), "damaged|not a readable")


def test_a_file_of_one_row(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", episodes=1, length=1)
    for data in (TransitionData(str(path)), SequenceData(str(path), horizon=8)):
        with pytest.raises(InputError, match=r"a step with a next|longest episode has 1"):
            data.setup("fit")
    with pytest.raises(InputError, match="without an action"):
        read(write_npz(tmp_path / "a.npz", rows=1))


def write_npz(path, rows=22, length=11, **arrays):
    """OGBench's layout: rows that count up, and T + 1 of them an episode."""
    whole = {
        "observations": np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2),
        "actions": np.arange(rows, dtype=np.float32)[:, None],
        "terminals": (np.arange(rows) % length == length - 1) | (np.arange(rows) == rows - 1),
    } | arrays
    np.savez(path, **{name: rows for name, rows in whole.items() if rows is not None})
    return path


def npz_of_header(path, shape, size):
    """An array that says that it has a shape, of which so many bytes are there."""
    member = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(write_npz(path, observations=None), "a") as archive:
        archive.writestr("observations.npy", member.getvalue() + bytes(size))
    return path


@pytest.mark.parametrize("shape", [(10**9, 2), (22, 3), (-22, 2), (2**40, 2**40)])
def test_npz_that_declares_more_than_it_has(tmp_path, shape):
    tracemalloc.start()
    refused(describe, npz_of_header(tmp_path / "a.npz", shape, 22 * 8), "declares the shape")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"terminals": np.full(22, np.nan)}, "terminals must be 0 or 1, but row 0 is nan"),
        ({"terminals": np.full(22, 0.5)}, "terminals must be 0 or 1"),
        ({"terminals": np.zeros(22)}, "must end with a terminal"),
        ({"masks": np.full(22, 0.5)}, "masks must be 0 or 1"),
        ({"rewards": np.full(22, np.nan)}, "rewards hold NaN"),
        ({"rewards": np.zeros((22, 2))}, "one row a step"),
        ({"rewards": np.zeros(21)}, "one row a step|unequal"),
        ({"next_observations": np.zeros((22, 3))}, "shaped like observations"),
        ({"next_observations": np.full((22, 2), np.nan)}, "next_observations hold NaN"),
        ({"observations": np.full((22, 2), np.inf)}, "observations hold NaN"),
        ({"observations": np.zeros((22, 0))}, "no columns"),
    ],
)
def test_npz_values_that_are_refused(tmp_path, arrays, match):
    refused(read, write_npz(tmp_path / "a.npz", **arrays), match)


def test_memory_is_compared_before_it_is_taken():
    check_memory("'a.npz'", 1)
    with pytest.raises(InputError, match=r"'a.npz' declares arrays that need 1000000000\.0 GB"):
        check_memory("'a.npz'", 10**18)


# What an npz file has beside observations, actions and terminals.


def test_rewards_and_masks_of_npz(tmp_path):
    rewards, masks = np.arange(22.0), np.ones(22)
    masks[9], rewards[10] = 0, np.nan  # the first episode's last step, and a row that is none
    path = write_npz(tmp_path / "a.npz", rewards=rewards[:, None], masks=masks)
    episodes = read(path)
    assert episodes.rewards.tolist() == [*range(10), *range(11, 21)]
    assert episodes.terminations.nonzero()[0].tolist() == [9]
    assert episodes.truncations.nonzero()[0].tolist() == [19]
    assert describe(path).has_rewards
    assert not describe(write_npz(tmp_path / "b.npz")).has_rewards


def test_forms_of_npz_are_the_same_episodes(tmp_path):
    """As ``ogbench.load_dataset`` makes them: rows dropped, or ``valids``."""
    whole = read(write_npz(tmp_path / "a.npz"))
    raw = dict(np.load(tmp_path / "a.npz"))
    last = raw["terminals"]
    before = np.append(last[1:], True)
    step = {name: rows[~last] for name, rows in raw.items()}
    step |= {"terminals": before[~last], "next_observations": raw["observations"][1:][~last[:-1]]}
    compact = {"valids": 1.0 - last, "terminals": np.maximum(last, before)}
    for name, arrays in (("b.npz", step), ("c.npz", compact)):
        episodes = read(write_npz(tmp_path / name, **arrays))
        for entry in ("observations", "actions", "offsets", "truncations", "final_observed"):
            np.testing.assert_array_equal(getattr(episodes, entry), getattr(whole, entry))


def test_masks_in_mid_episode_end_what_is_summed(tmp_path):
    masks = np.ones(22)
    masks[[4, 5]] = 0
    path = write_npz(tmp_path / "a.npz", rewards=np.ones(22), masks=masks)
    episodes = read(path)
    assert episodes.returns_to_go(1.0)[:11].tolist() == [5, 4, 3, 2, 1, 1, 4, 3, 2, 1, 10]
    batch = Transitions(episodes, n_steps=3, discount=1.0)[torch.arange(8)]
    assert batch["rewards"].tolist() == [3, 3, 3, 2, 1, 1, 3, 3]
    assert batch["terminations"].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert batch["next_observations"][2:5, 0].tolist() == [10, 10, 10]
    for data in (ChunkData(str(path)), FutureData(str(path))):
        with pytest.raises(InputError, match="Masks of the dataset are 0 in mid-episode"):
            data.setup("fit")


def test_arrays_that_say_something_else_are_named(tmp_path):
    with pytest.warns(UserWarning, match="has timeouts, which are not read"):
        read(write_npz(tmp_path / "a.npz", timeouts=np.zeros(22)))
    raw = write_npz(tmp_path / "a.npz")
    shifted = np.roll(np.load(raw)["observations"], -1, 0)
    with pytest.warns(UserWarning, match="lead from each episode into the next"):
        read(write_npz(tmp_path / "b.npz", next_observations=shifted))


def test_roles_that_learn_from_rewards_need_some(tmp_path):
    data = TransitionData(str(write_npz(tmp_path / "a.npz")), batch_size=4)
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    with pytest.raises(InputError, match=r"DiffusionQL learns from rewards, which .*a\.npz do not"):
        trainer.fit(DiffusionQL(2, 1, hidden_dim=8), datamodule=data)
    trainer.fit(BehaviourCloning(2, 1, hidden_dim=8), datamodule=ready(data))
    assert trainer.global_step == 1


# What is warned of, with counts.


def test_runs_of_single_steps_are_counted(tmp_path):
    terminals = np.zeros(1000, bool)
    terminals[100:115] = terminals[300:325] = terminals[600:605] = True
    with pytest.warns(UserWarning, match="40 episodes of one step in 2 runs of at least 10"):
        read(write_d4rl(tmp_path / "a.hdf5", terminals=terminals))


@pytest.mark.parametrize("shift", [-2, 2])
def test_timeouts_beside_the_resets_are_counted(tmp_path, shift):
    timeouts = np.zeros(1000, bool)
    timeouts[99 + shift :: 100] = True
    path = write_d4rl(tmp_path / "a.hdf5", timeouts=timeouts, observation_dim=8)
    with h5py.File(path, "a") as file:  # a reset moves two of eight entries far
        file["observations"][:, :2] += 10.0 * (np.arange(1000) // 100 % 2)[:, None]
    side = "before" if shift > 0 else "behind"
    with pytest.warns(UserWarning, match=f"jumps in [89] of 1[01] episodes, 2 rows {side} the end"):
        read(path)


def test_jumps_anywhere_are_counted(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for row in (150, 333, 777):
            file["observations"][row : row // 100 * 100 + 100] += 50
    with pytest.warns(UserWarning, match="has 3 jumps inside its episodes"):
        read(path)


def test_next_observations_out_of_order_are_counted(tmp_path):
    with h5py.File(write_d4rl(tmp_path / "a.hdf5")) as file:
        right = np.roll(file["observations"][:], -1, 0)
    right[99::100] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(write_d4rl(tmp_path / "a.hdf5", next_observations=right))
    right[[5, 205, 307]] += 1
    with pytest.warns(UserWarning, match="3 of 990 steps .* not the observation of the next row"):
        read(write_d4rl(tmp_path / "a.hdf5", next_observations=right))


def test_real_files_are_not_warned_of(shared_data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in [*shared_data.glob("*.hdf5"), *shared_data.glob("fixtures/*")]:
            read(path)


def test_what_the_library_writes_is_not_warned_of(tmp_path):
    episodes = read(write_d4rl(tmp_path / "a.hdf5"))
    write_episodes(str(tmp_path / "b.hdf5"), episodes, {}, None)
    assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "b.hdf5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read(tmp_path / "b.hdf5").rewards, episodes.rewards)
