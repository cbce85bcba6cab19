"""Skills in their latent space and in a maze."""

import pytest
import torch
from modules.role_tester import quiet_trainer, small_prior, small_skills

from diffrl_lightning import ChunkData, DiffusionQL, InputError, LatentSkills, SkillFigure


def umaze():
    options = {"generate_steps": 6000, "goal_key": "none", "join_episodes": 40_000}
    return ChunkData("pointmaze/umaze", horizon=24, **options)


class Recorded(LatentSkills):
    """Its skills are the data's own chunks, by number; or it stays where it is."""

    still = False

    def encode(self, batch):
        self.batch, self.time = batch, 0
        return super().encode(batch)

    def sample_skills(self, states, num_samples=1, **options):
        first = self.batch["observations"][:, 0]
        return (first[None] == states[:, None]).all(-1).float().argmax(1)[:, None, None]

    def decode(self, states, skills, steps, **options):
        actions = self.batch["actions"][skills[:, 0], self.time]
        self.time = (self.time + 1) % 24
        return torch.zeros_like(actions) if self.still else actions


@pytest.mark.parametrize("still", [False, True])
def test_what_skills_do_in_a_maze(tmp_path, still):
    """Chunks that are played again end where they ended; an agent that rolls on ends elsewhere."""
    module = Recorded(4, 2, horizon=24, latent_dim=4, hidden_dim=8, num_layers=1)
    module.still = still
    figure = SkillFigure(num_points=300)
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, callbacks=[figure])
    trainer.validate(module, datamodule=umaze(), verbose=False)
    distance = trainer.callback_metrics["val/end_distance"]
    assert distance > 0.15 if still else distance < 0.05
    assert (tmp_path / "skills_val.png").stat().st_size > 20_000


@pytest.mark.parametrize("make", [small_skills, small_prior])
def test_skills_elsewhere(tmp_path, pendulum_file, make):
    trainer = quiet_trainer(tmp_path, limit_val_batches=1, callbacks=[SkillFigure(num_points=50)])
    data = ChunkData(str(pendulum_file), horizon=8)
    trainer.validate(make(pendulum_file), datamodule=data, verbose=False)
    assert "val/end_distance" not in trainer.callback_metrics
    assert (tmp_path / "skills_val.png").stat().st_size > 10_000


def test_roles_without_skills_are_refused():
    module = DiffusionQL(3, 1, hidden_dim=8)
    with pytest.raises(InputError, match="DiffusionQL draws no skills"):
        SkillFigure().setup(None, module, "fit")


@pytest.mark.parametrize("wrong", [{"num_points": 2}, {"num_starts": -1}, {"num_skills": 0}])
def test_refuses(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SkillFigure(**wrong)
