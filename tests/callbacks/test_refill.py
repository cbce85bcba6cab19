"""Online synthesis on a growing buffer."""

import lightning.pytorch as pl
import pytest
import torch
from helpers import rows
from modules.role_tester import quiet_trainer

from diffrl_lightning import TD3BC, DataSynthesizer, InputError, SynthesisSampling, TransitionData
from diffrl_lightning.callbacks import Refill
from diffrl_lightning.data import ReplayData

TINY = {"hidden_dim": 32, "num_blocks": 1, "embed_dim": 16}


class World(pl.Callback):
    """Transitions that come at every step, around a mean that moves at the tenth."""

    def __init__(self):
        self.means, self.sizes = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        trainer.datamodule.buffer.add(rows(50, 0.0 if step < 10 else 20.0, step))
        synthetic = trainer.datamodule.synthetic
        self.sizes.append(len(synthetic))
        if len(synthetic):
            self.means.append(float(synthetic.values("observations").mean()))


def replay():
    data = ReplayData(3, 1, capacity=5000, synthetic_capacity=400, batch_size=32)
    data.buffer.add(rows(50, 0.0, 99))
    return data


def refill(**kwargs):
    options = {"every_n_steps": 10, "num_updates": 60, "num_samples": 300, "chunk_size": 128}
    sampling = SynthesisSampling(num_inference_steps=15)
    return Refill(DataSynthesizer(3, 1, **TINY), **(options | {"sampling": sampling} | kwargs))


def fit(tmp_path, steps, data, world, **kwargs):
    agent = TD3BC(3, 1, hidden_dim=16)
    trainer = quiet_trainer(tmp_path, max_steps=steps, callbacks=[world, refill()])
    trainer.fit(agent, datamodule=data, **kwargs)
    return trainer, agent


def test_synthetic_transitions_follow_a_growing_buffer(tmp_path):
    torch.manual_seed(0)
    data, world = replay(), World()
    fit(tmp_path, 21, data, world)
    assert world.sizes == [0] * 10 + [300] * 11
    first, second = world.means[0], world.means[-1]
    assert abs(first) < 0.7  # the first 550 transitions
    seen = 20 * 500 / 1050
    assert second == pytest.approx(seen, abs=2)  # half of them are around 20 by then


def test_an_interrupted_run_goes_on_as_if_it_were_not(tmp_path):
    whole = replay()
    torch.manual_seed(1)
    _, unbroken = fit(tmp_path, 14, whole, World())
    torch.manual_seed(1)
    trainer, _ = fit(tmp_path, 12, replay(), World())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = replay()
    _, agent = fit(tmp_path, 14, resumed, World(), ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(agent.state_dict().values(), unbroken.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for name, array in whole.synthetic.arrays.items():
        torch.testing.assert_close(resumed.synthetic.arrays[name], array, rtol=0, atol=0)


def test_what_can_not_be_refilled_is_refused(tmp_path, pendulum_file):
    with pytest.raises(InputError, match="without conditions"):
        Refill(DataSynthesizer(3, 1, conditions=("return",), **TINY))
    with pytest.raises(InputError, match="at least 1"):
        refill(num_updates=0)
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[refill()])
    with pytest.raises(InputError, match="ReplayData"):
        trainer.fit(TD3BC(3, 1, hidden_dim=16), datamodule=TransitionData(str(pendulum_file)))
