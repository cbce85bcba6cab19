"""Minari datasets: nothing in them runs, what is broken is refused, caches and leftovers."""

import json
import os
import time

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from diffrl_lightning.data import TransitionData
from diffrl_lightning.data.sources import SourceOptions, reader
from diffrl_lightning.data.sources import minari as minari_reader
from diffrl_lightning.types import InputError

NAME = "toys/walk-v0"
OPTIONS = SourceOptions()


def buffers(lengths=(5, 7, 6)):
    """Episodes whose values are all different."""
    first = 0.0
    for i, length in enumerate(lengths):
        rows = first + np.arange(length + 1, dtype=np.float32)
        first += length + 1
        yield EpisodeBuffer(
            id=i,
            observations=np.repeat(rows[:, None], 3, 1),
            actions=rows[:-1, None] / 100,
            rewards=rows[:-1],
            terminations=np.zeros(length, bool),
            truncations=np.arange(length) == length - 1,
        )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The data of a dataset of three episodes, on its own disk."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spaces = gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(-1, 1, (1,))
    minari.create_dataset_from_buffers(
        NAME, list(buffers()), observation_space=spaces[0], action_space=spaces[1]
    )
    return tmp_path / "minari" / NAME / "data"


def change(folder, **values):
    """Change entries of the metadata; None removes them."""
    path = folder / "metadata.json"
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def spec(env_id="Pendulum-v1", **values):
    return json.dumps({"id": env_id, "kwargs": {}, "additional_wrappers": [], **values})


def load():
    return reader(NAME).load(NAME, OPTIONS)


def describe_and_load():
    describe()
    load()


def describe():
    return reader(NAME).describe(NAME, OPTIONS)


@pytest.mark.parametrize("removed", [("observation_space", "action_space"), ("action_space",)])
@pytest.mark.parametrize("name", ["env_spec", "eval_env_spec"])
def test_a_dataset_runs_nothing(folder, tmp_path, removed, name):
    command = {"entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path}/pwned"}}
    change(folder, **dict.fromkeys(removed), **{name: spec(**command)})
    for call in (describe, load, lambda: TransitionData(NAME)):
        with pytest.raises(InputError, match="is not run for it"):
            call()
    assert not (tmp_path / "pwned").exists()


def test_entry_points_are_not_used_where_spaces_are_there(folder, tmp_path):
    """The environment is the registered one of this id; wrappers are never imported."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    wrapper = {"name": "Evil", "entry_point": "evil:Evil", "kwargs": {}}
    change(
        folder,
        env_spec=spec(
            entry_point="evil:Evil", vector_entry_point="evil:Evil", additional_wrappers=[wrapper]
        ),
    )
    data = TransitionData(NAME)
    assert data.env_id is None
    with pytest.raises(InputError, match=r"wrapper 'evil:Evil', which can not be rebuilt"):
        data.make_env()
    change(folder, env_spec=spec(entry_point="evil:Evil", vector_entry_point="evil:Evil"))
    with pytest.raises(InputError, match="records actions in"):  # Pendulum's are in [-2, 2]
        TransitionData(NAME)
    for env_id in ("evil:Id-v0", "Id-v0"):
        change(folder, env_spec=spec(env_id, entry_point="evil:Evil"))
        data = TransitionData(NAME)
        data.setup("fit")
        assert len(data.train_data) > 0, "an unknown environment does not keep from training"
        with pytest.raises(InputError, match="would import code" if ":" in env_id else "registers"):
            data.make_env()
    assert not (tmp_path / "pwned").exists()


BOX = {"type": "Box", "dtype": "float32", "shape": [3], "low": [0, 0, 0], "high": [1, 1, 1]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total_episodes": 0}, "total_episodes is 0"),
        ({"total_steps": "18"}, "total_steps is '18'"),
        ({"total_episodes": 10**12}, "it has 3 episodes, not"),
        ({"data_format": "pickle"}, "data_format 'pickle'"),
        ({"minari_version": "9.9"}, "of Minari '9.9'"),
        ({"minari_version": None}, "of Minari None"),
        ({"ref_min_score": "a", "ref_max_score": 1.0}, "reference scores"),
        ({"observation_space": 3}, "no observation_space"),
        ({"observation_space": "{"}, "can not be read"),
        ({"observation_space": json.dumps({"type": "os.system"})}, "none of Gymnasium's"),
        ({"observation_space": json.dumps(BOX | {"shape": [10**9]})}, "hold what it declares"),
        ({"observation_space": json.dumps(BOX | {"dtype": "O"})}, "none of Gymnasium's"),
        ({"observation_space": json.dumps(BOX | {"low": "x"})}, "none of Gymnasium's"),
        ({"action_space": json.dumps({"type": "Discrete", "n": -3, "start": 0})}, "is not sound"),
        ({"action_space": json.dumps({"type": "Discrete", "n": 3, "start": 0})}, "real numbers"),
        ({"env_spec": "{"}, "not valid JSON"),
        ({"env_spec": json.dumps({"kwargs": {}})}, "has no id"),
        ({"env_spec": spec(kwargs=[1])}, "keywords of its environment"),
        ({"env_spec": spec(max_episode_steps="many")}, "time limit of its environment is 'many'"),
        ({"env_spec": spec(additional_wrappers=[3])}, "a wrapper of its environment"),
        ({"env_spec": spec(additional_wrappers={"a": 1})}, "wrappers of its environment"),
    ],
)
def test_broken_metadata_are_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(InputError, match=message):
        describe_and_load()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 10_000])
def test_metadata_that_are_no_dictionary(folder, text):
    (folder / "metadata.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="can not be read"):
        describe()


def test_a_dataset_without_metadata_is_not_looked_for_elsewhere(folder, monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", lambda *_: pytest.fail("the network was asked"))
    (folder / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"has no data/metadata.json"):
        describe()


def replace(name, values):
    def edit(file):
        del file[name]
        file[name] = values

    return edit


def external(file):
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink("other.hdf5", "rewards")


def shifted(file):
    """Episodes of 5 and 7 steps, of which one observation has wandered; their sum is right."""
    rows = [file[f"episode_{i}/observations"][:] for i in (0, 1)]
    replace("episode_0/observations", np.concatenate([rows[0], rows[1][:1]]))(file)
    replace("episode_1/observations", rows[1][1:])(file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (shifted, r"observations of the shape \(7, 3\)"),
        (replace("episode_1/actions", np.zeros((6, 1))), r"actions of the shape \(6, 1\)"),
        (replace("episode_1/actions", np.zeros((7, 2))), r"actions of the shape \(7, 2\)"),
        (replace("episode_1/rewards", np.zeros(8)), "an episode has"),
        (replace("episode_1/rewards", np.zeros(0)), "no steps"),
        (replace("episode_1/rewards", 3.0), "no steps"),
        (replace("episode_1/rewards", [b"a"] * 7), "must be numbers"),
        (replace("episode_1/terminations", np.full(7, 0.5)), "terminations must be 0 or 1"),
        (replace("episode_1/truncations", np.full(7, np.nan)), "truncations must be 0 or 1"),
        (replace("episode_1/rewards", np.full(7, np.nan)), "rewards hold NaN"),
        (lambda file: file.move("episode_1", "other"), "no array episode_1/rewards"),
        (external, "a link to another file"),
    ],
)
def test_broken_episodes_are_refused(folder, edit, message):
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        edit(file)
    with pytest.raises(InputError, match=message):
        load()


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_truncated_file_is_refused(folder, size):
    content = (folder / "main_data.hdf5").read_bytes()
    (folder / "main_data.hdf5").write_bytes(content[:size])
    with pytest.raises(InputError, match="can not be read"):
        load()


@pytest.mark.parametrize("scores", [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_reference_scores_make_a_scale(folder, scores):
    change(folder, ref_min_score=scores[0], ref_max_score=scores[1])
    with pytest.raises(InputError, match="give ref_scores"):
        TransitionData(NAME)
    assert TransitionData(NAME, ref_scores=(0.0, 1.0)).ref_scores == (0.0, 1.0)
    with pytest.raises(InputError, match="ref_scores"):
        TransitionData(NAME, ref_scores=scores)


@pytest.mark.parametrize("asked", ["toys/wlak-v0", "toys/walks-v0", "toys/walk", "toy/walk-v0"])
def test_the_nearest_local_dataset_is_named_before_the_network_is_asked(folder, monkeypatch, asked):
    monkeypatch.setattr(minari, "download_dataset", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(InputError, match=f"did you mean {NAME}"):
        reader(asked).describe(asked, OPTIONS)


@pytest.mark.parametrize("asked", ["toys/walk-v1", "games/chess-v0"])
def test_other_datasets_are_looked_for(folder, monkeypatch, asked):
    seen = []

    def unreachable(dataset):
        seen.append(dataset)
        raise OSError

    monkeypatch.setattr(minari, "download_dataset", unreachable)
    with pytest.raises(InputError, match="can not be downloaded"):
        reader(asked).describe(asked, OPTIONS)
    assert seen == [asked]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: truncate(cache / "actions.npy"),
        lambda cache: (cache / "rewards.npy").write_bytes(b""),
        lambda cache: (cache / "offsets.npy").unlink(),
        lambda cache: np.save(cache / "actions.npy", np.zeros((3, 1), np.float32)),
        lambda cache: np.save(cache / "actions.npy", np.array([{}]), allow_pickle=True),
        lambda cache: [path.unlink() for path in cache.iterdir()],
    ],
)
def test_a_damaged_cache_is_made_anew(folder, tmp_path, damage):
    names = ("observations", "actions", "rewards", "offsets")
    right = {name: np.array(getattr(load(), name)) for name in names}
    (cache,) = (tmp_path / "cache").iterdir()
    damage(cache)
    with pytest.warns(UserWarning, match="is damaged"):
        found = load()
    for name in names:
        np.testing.assert_array_equal(getattr(found, name), right[name])
    assert list((tmp_path / "cache").iterdir()) == [cache]
    assert isinstance(load().actions, np.memmap)


def test_a_dataset_can_do_without_its_cache(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFRL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="name another folder by the variable DIFFRL_CACHE"):
        assert load().num_steps == 18


def test_leftovers_of_killed_processes_are_swept_after_a_day(folder, tmp_path):
    old = time.time() - 90_000
    names = ("tmpab12_xyz", ".partial-abc", "tmp-mine-v0-0123456789abcdef", ".partial-busy")
    for root in (tmp_path / "cache", tmp_path / "minari"):
        for name in (*names, ".partial-new"):
            (root / name).mkdir(parents=True)
            (root / name / "a.npy").touch()
            if name in names:
                os.utime(root / name / "a.npy", (old, old))
                os.utime(root / name, (old, old))
        (root / ".partial-busy" / "a.npy").touch()  # its writer is at work
    load()
    minari_reader.write(
        "toys/other-v0",
        buffers(),
        None,
        observation_space=gym.spaces.Box(-9, 99, (3,)),
        action_space=gym.spaces.Box(-1, 1, (1,)),
    )
    kept = {"tmp-mine-v0-0123456789abcdef", ".partial-busy", ".partial-new"}
    # Earlier versions left tmp* in the cache; in Minari's folder they are someone else's.
    for root, right in (("cache", kept), ("minari", kept | {"tmpab12_xyz"})):
        left = {path.name for path in (tmp_path / root).iterdir()} & {*names, ".partial-new"}
        assert left == right
