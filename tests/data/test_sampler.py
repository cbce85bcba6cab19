"""Which items make batch k, and where items begin."""

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from modules.role_tester import quiet_trainer, ready
from test_episodes import make

from diffrl_lightning import TD3BC, TransitionData
from diffrl_lightning.data import Transitions, Windows
from diffrl_lightning.data.sampler import BatchSampler
from diffrl_lightning.types import InputError


def test_batch_k_is_a_function_of_seed_and_k():
    def batches(**kwargs):
        return [b.tolist() for b in BatchSampler(50, batch_size=8, seed=3, **kwargs)]

    whole = batches()
    assert len(whole) == 6
    assert batches(position=lambda: 4)[0] == whole[4]
    sampler = BatchSampler(50, batch_size=8, seed=3)
    stream = np.concatenate([sampler.batch(k) for k in range(25)])
    for p in range(4):  # every pass is a permutation, and they differ
        assert sorted(stream[p * 50 : (p + 1) * 50]) == list(range(50))
    assert stream[:50].tolist() != stream[50:100].tolist()
    assert BatchSampler(50, batch_size=8, seed=4).batch(0).tolist() != whole[0]


def test_processes_share_each_batch_without_overlap():
    ranks = [BatchSampler(64, batch_size=8, seed=1, num_replicas=2, rank=rank) for rank in range(2)]
    alone = BatchSampler(64, batch_size=16, seed=1)
    assert len(ranks[0]) == len(alone) == 4
    for k in range(4):
        both = torch.cat([sampler.batch(k) for sampler in ranks])
        assert torch.equal(both, alone.batch(k))


def test_more_batch_than_data():
    sampler = BatchSampler(5, batch_size=12)
    assert len(sampler) == 1
    assert sampler.batch(0).shape == (12,)


@pytest.mark.parametrize(
    ("make_dataset", "lost"), [(partial(Windows, horizon=2), 1), (Transitions, 0)]
)
def test_starts_come_more_often(make_dataset, lost):
    episodes = make((7, 2, 9))
    dataset = make_dataset(episodes, np.array([0, 1]), start_steps=3, start_repeats=4)
    starts, which = dataset.starts(torch.arange(len(dataset)))
    begun = (starts - torch.from_numpy(episodes.offsets)[which]).tolist()
    counts = {pair: 0 for e, n in ((0, 7), (1, 2)) for pair in ((e, s) for s in range(n - lost))}
    for pair in zip(which.tolist(), begun, strict=True):
        counts[pair] += 1
    assert counts == {(e, s): 4 if s < 3 else 1 for e, s in counts}
    with pytest.raises(InputError, match="at least"):
        make_dataset(episodes, start_repeats=0)


def test_a_loop_without_a_trainer_sees_all_the_data_in_another_order(pendulum_file):
    data = ready(TransitionData(str(pendulum_file), batch_size=64))
    loader = data.train_dataloader()
    first, second = ([batch["actions"] for batch in loader] for _ in range(2))
    assert len(loader) == len(first) == 14
    assert sum(map(len, first)) == len(data.train_data)
    assert not torch.equal(first[0], second[0])
    values = [torch.cat(batches).sort(0).values for batches in (first, second)]
    assert torch.equal(*values)


def test_overfitting_sees_the_same_batches_again(tmp_path, pendulum_file):
    class Seen(pl.Callback):
        sums = []

        def on_train_batch_start(self, trainer, module, batch, index):
            self.sums.append(float(batch["actions"].sum()))

    trainer = quiet_trainer(tmp_path, max_steps=6, overfit_batches=2, callbacks=[Seen()])
    data = TransitionData(str(pendulum_file), batch_size=64)
    trainer.fit(TD3BC(3, 1, hidden_dim=8), datamodule=data)
    assert Seen.sums == Seen.sums[:2] * 3
    begin = BatchSampler(len(data.train_data), batch_size=64).batch(0)
    assert Seen.sums[0] == float(data.train_data[begin]["actions"].sum())
