"""Values and futures over a maze."""

import pytest
import torch
from modules.role_tester import quiet_trainer

from diffrl_lightning import (
    DiffusedValue,
    DiffusionQL,
    FutureData,
    InputError,
    MazeMap,
    RelativeReward,
    SequenceData,
    TransitionData,
)

UMAZE = {"dataset": "pointmaze/umaze", "generate_steps": 6000, "goal_key": "none"}


class Perfect(DiffusedValue):
    """Its futures are the data's own, or all in one place; its value is x."""

    exact = True

    def place_values(self, batch):
        self.batch = batch
        return batch["observations"], batch["observations"][:, 0]

    def sample_futures(self, states, *, how):
        num_samples = super().sample_futures(states, how=how).shape[1]
        found = (self.batch["observations"][None] == states[:, None]).all(-1).float().argmax(1)
        futures = self.batch["future_observations"][found]
        if not self.exact:
            futures = torch.zeros_like(futures) + 100
        return futures[:, None].expand(-1, num_samples, -1)


@pytest.mark.parametrize("exact", [True, False])
def test_distance_of_futures(tmp_path, exact):
    """0 for the data's own, and 1 for futures where the data have none."""
    module = Perfect(4, 2, hidden_dim=8, num_blocks=1, embed_dim=8, val_samples=0)
    module.exact = exact
    maze_map = MazeMap(num_points=500, num_futures=500)
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, callbacks=[maze_map])
    trainer.validate(module, datamodule=FutureData(**UMAZE, num_draws=1), verbose=False)
    distance = trainer.callback_metrics["val/occupancy_distance"]
    assert distance == pytest.approx(0 if exact else 1, abs=1e-6)
    assert (tmp_path / "maze_val.png").stat().st_size > 5_000


def test_a_reward_is_drawn(tmp_path):
    module = RelativeReward(
        4, 2, horizon=8, num_origins=2, window=1, dim=16, objective="discriminator"
    )
    data = SequenceData(**UMAZE, horizon=8, padding="edge")
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, callbacks=[MazeMap(num_points=500)])
    trainer.validate(module, datamodule=data, verbose=False)
    assert "val/occupancy_distance" not in trainer.callback_metrics
    assert (tmp_path / "maze_val.png").stat().st_size > 5_000


def test_refuses(tmp_path, pendulum_file):
    with pytest.raises(InputError, match="num_points"):
        MazeMap(num_points=0)
    options = {"max_steps": 1, "limit_val_batches": 0, "callbacks": [MazeMap()]}
    module = DiffusionQL(3, 1, hidden_dim=8)
    with pytest.raises(InputError, match="no values of places"):
        quiet_trainer(tmp_path, **options).fit(module, TransitionData(str(pendulum_file)))
    module = DiffusedValue(3, 1, hidden_dim=8, num_blocks=1, embed_dim=8)
    with pytest.raises(InputError, match="no maze"):
        quiet_trainer(tmp_path, **options).fit(module, FutureData(str(pendulum_file)))
