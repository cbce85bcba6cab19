"""Datamodules of datasets: lists of them, the split, statistics, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import write_d4rl
from jsonargparse._parameter_resolvers import get_signature_parameters
from torch.utils.data import DataLoader

from diffrl_lightning.data import (
    ChunkData,
    FutureData,
    OfflineData,
    OnlineData,
    SequenceData,
    TransitionData,
)
from diffrl_lightning.data.online import GrowingData
from diffrl_lightning.data.sources import SourceOptions, d4rl
from diffrl_lightning.types import InputError


def test_list_of_datasets(tmp_path):
    first = write_d4rl(tmp_path / "a.hdf5", episodes=3)
    second = write_d4rl(tmp_path / "b.hdf5", episodes=4, seed=1)
    data = SequenceData([str(first), str(second)], horizon=8, val_fraction=0)
    data.prepare_data()
    data.setup("fit")
    assert len(data.episodes) == 7
    np.testing.assert_array_equal(
        data.episodes.rewards[300:], d4rl.load(str(second), SourceOptions()).rewards
    )


def test_medium_and_expert_as_a_list(tmp_path):
    """Both datasets are in the batches, each window with the number of the dataset it is from."""
    paths = [
        write_d4rl(tmp_path / f"{name}.hdf5", episodes=6, length=20, rewards=np.full(120, reward))
        for name, reward in (("medium", 1.0), ("expert", 2.0))
    ]
    data = SequenceData([str(p) for p in paths], horizon=4, discount=1.0, batch_size=64)
    data.setup("fit")
    assert data.num_origins == 2
    assert data.episodes.origins.tolist() == [0] * 6 + [1] * 6
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            reward = batch["origins"] + 1.0
            assert torch.equal(batch["rewards"], reward[:, None].expand(-1, 4))
            assert ((batch["returns"] / reward) % 1 == 0).all()
    origins = torch.cat([batch["origins"] for batch in data.train_dataloader()])
    assert origins.bincount().min() > 0.3 * len(origins)
    assert SequenceData(str(paths[0]), horizon=4).num_origins == 1


def test_windows_of_one_dataset_with_statistics_of_all(tmp_path):
    """``train_on`` chooses windows; what a model takes its statistics from stays the same."""
    names = [str(write_d4rl(tmp_path / f"{seed}.hdf5", seed=seed)) for seed in (0, 1)]
    rows = []
    for part in ([0], [1], None):
        data = SequenceData(names, horizon=4, train_on=part, val_fraction=0.3)
        data.setup("fit")
        for dataset in (data.train_data, data.val_data):
            origins = dataset[torch.arange(len(dataset))]["origins"].unique().tolist()
            assert origins == (part or [0, 1])
        values, which = data.training_rows("observations")
        rows.append(values[which])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    with pytest.raises(InputError, match="0 to 1"):
        SequenceData(names, horizon=4, train_on=[2])
    with pytest.raises(InputError, match="leaves no episode"):
        SequenceData(names, horizon=4, train_on=[]).setup("fit")


def test_returns_of_the_training_episodes_alone(tmp_path):
    """Ten episodes of 20 steps, the e-th with rewards e, so that those held out would be seen."""
    rewards = np.repeat(np.arange(1.0, 11), 20)
    terminals, timeouts = np.zeros(200, bool), np.zeros(200, bool)
    terminals[39] = True  # the second episode ended, the others were cut short
    timeouts[19::20] = ~terminals[19::20]
    path = write_d4rl(
        tmp_path / "a.hdf5", length=20, rewards=rewards, terminals=terminals, timeouts=timeouts
    )
    data = SequenceData(
        str(path), horizon=4, discount=0.5, termination_penalty=-7.0, val_fraction=0.3
    )
    data.setup("fit")
    assert len(data.val_indices) == 3
    assert 1 in data.train_indices
    left = np.arange(20)[::-1]  # steps that follow
    expected = [
        (e + 1) * (2 - 0.5**left) - 7 * 0.5**left * (e == 1) for e in data.train_indices.tolist()
    ]
    np.testing.assert_allclose(data.training_returns(), np.concatenate(expected), rtol=1e-6)


def test_a_share_of_the_training_episodes(tmp_path):
    """Ten episodes of 20 steps; what is held out does not depend on the share that is trained on."""
    path = write_d4rl(tmp_path / "a.hdf5", length=20)

    def split(**kwargs):
        data = TransitionData(str(path), **kwargs)
        data.setup("fit")
        rows = data.training_rows("actions")[1]
        assert int(rows.sum()) == 20 * len(data.train_indices)
        states, following, rows = data.training_pairs()
        assert int(rows.sum()) == 20 * len(data.train_indices)
        batch = data.train_data[torch.arange(len(data.train_data))]
        for name, values in (("observations", states), ("next_observations", following)):
            found = values[rows].view(-1, 20, values.shape[1])[:, :19].flatten(0, 1)
            assert torch.equal(found, batch[name])
        assert len(data.train_data) == 19 * len(data.train_indices)  # last steps have no next state
        return set(data.train_indices.tolist()), set(data.val_indices.tolist())

    whole, held_out = split(val_fraction=0.2)
    part, same = split(val_fraction=0.2, train_fraction=0.25)
    assert len(part) == 2
    assert part < whole
    assert same == held_out
    assert split(val_fraction=0.2, train_fraction=0.25, seed=1)[0] != part
    few, watched = split(val_fraction=0.0, train_fraction=0.01)
    assert few == watched
    assert len(few) == 1
    for wrong in (0.0, 1.5):
        with pytest.raises(InputError, match="train_fraction"):
            TransitionData(str(path), train_fraction=wrong)


def test_validation_episodes_are_long_enough(tmp_path):
    """Episodes that are shorter than a window are never all that is held out."""
    timeouts = np.zeros(3600, bool)
    timeouts[np.concatenate([np.arange(1, 11) * 300, 3000 + np.arange(1, 31) * 20]) - 1] = True
    path = write_d4rl(tmp_path / "a.hdf5", episodes=36, timeouts=timeouts)
    for seed in range(6):
        data = SequenceData(str(path), horizon=64, seed=seed)
        data.setup("fit")
        assert len(data.val_data) == 2 * 237 if len(data.val_indices) == 2 else 237
        assert len(data.train_indices) + len(data.val_indices) == 40


def test_environment_must_match(pendulum_file):
    with pytest.raises(InputError, match="Dataset and environment do not match"):
        SequenceData(str(pendulum_file), env_id="MountainCarContinuous-v0")


def test_predictions_are_what_the_writer_asks_for(pendulum_file):
    data = TransitionData(str(pendulum_file))
    data.setup("predict")
    assert data.episodes is None, "predictions need no arrays"
    with pytest.raises(InputError, match=r"say where with synthesis\.output"):
        data.predict_dataloader()
    data.prediction_jobs = DataLoader([1, 2], batch_size=None)
    assert list(data.predict_dataloader()) == [1, 2]


@pytest.mark.parametrize("cls", [SequenceData, TransitionData, ChunkData, FutureData, OnlineData])
def test_every_argument_is_resolved_and_explained(cls):
    """Those that are handed on too, with their types and defaults."""
    found = {p.name: p for p in get_signature_parameters(cls, "__init__")}
    shared = GrowingData if cls is OnlineData else OfflineData
    names = {p.name for p in get_signature_parameters(shared, "__init__")}
    assert names < set(found)
    for name, parameter in found.items():
        assert parameter.doc, name
        assert parameter.kind.name in ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"), name


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"val_fraction": 1.0}, {"ref_scores": (2.0, 1.0)}]
)
def test_refuses(pendulum_file, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TransitionData(str(pendulum_file), **wrong)
