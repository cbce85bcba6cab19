"""The environments that the policies are for: data in, a step of training, an episode out."""

import pytest
import torch
from conftest import write_d4rl
from modules.role_tester import quiet_trainer

from diffrl_lightning import DiffusionPolicy, DiffusionQL, SequenceData, TransitionData
from diffrl_lightning.callbacks.rollout import roll_out


@pytest.mark.parametrize("role", [DiffusionPolicy, DiffusionQL])
@pytest.mark.parametrize(
    ("env_id", "dims", "reports_success"),
    [
        ("HalfCheetah-v5", (17, 6), False),
        ("AdroitHandDoor-v1", (39, 28), True),
        ("FrankaKitchen-v1", (59, 9), False),
    ],
)
def test_from_data_to_an_episode(tmp_path, role, env_id, dims, reports_success):
    file = write_d4rl(tmp_path / "data.hdf5", observation_dim=dims[0], action_dim=dims[1])
    shared = {"env_id": env_id, "env_kwargs": {"max_episode_steps": 5}}
    if role is DiffusionPolicy:
        data = SequenceData(str(file), horizon=4, padding="edge", pad_after=1, **shared)
        module = role(*dims, horizon=4, n_obs_steps=1, n_action_steps=2, backbone="mlp", dim=16)
    else:
        data = TransitionData(str(file), **shared)
        module = role(*dims, hidden_dim=16)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    policy = module.eval().make_policy(num_inference_steps=2)
    with torch.no_grad():
        evaluation, _ = roll_out(policy, data, range(2), show_progress=False)
    for episode in evaluation.episodes:
        assert torch.tensor(episode.episode_return).isfinite()
        assert episode.length == 5
        assert (episode.success is not None) == reports_success
