"""Which items make batch k, and where items begin."""

from functools import partial

import numpy as np
import pytest
import torch
from test_episodes import make

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
