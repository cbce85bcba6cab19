"""LatentQ: tabular Q-learning among candidates, goals, memory, and what every role must do."""

from types import SimpleNamespace

import pytest
import torch

from diffrl_lightning import ChunkData, InputError, LatentQ, SkillQActing
from diffrl_lightning.normalizers import TrajectoryNormalizer
from modules.role_tester import quiet_trainer, saved, small_prior, small_skills

SMALL = {"horizon": 8, "latent_dim": 4, "hidden_dim": 32, "num_candidates": 3}


def small(**kwargs):
    steps = {"num_inference_steps": 2}
    return LatentQ(**({"observation_dim": 3, "action_dim": 1} | SMALL | steps | kwargs))


@pytest.fixture(scope="module")
def prior_ckpt(tmp_path_factory, pendulum_file):
    """A prior as it begins."""
    torch.manual_seed(0)
    return saved(small_prior(pendulum_file), tmp_path_factory.mktemp("prior") / "prior.ckpt")


# Of five states in a row, three skills: (one to the left, two to the right, to the last at once).
LENGTHS = torch.tensor([1, 2, 3])
PROPOSED = torch.tensor(
    [[0, 1], [0, 1], [0, 0], [0, 1], [0, 1]]
)  # skills that the prior draws, by state
DISCOUNT = 0.9


def leads_to(state, skill):
    """Next state, reward of each step, end: the last state ends it."""
    following = [max(state - 1, 0), min(state + 2, 4), 4][skill]
    reward = [0.3, 0.1, 5.0][skill] + (following == 4)
    return following, reward, following == 4


class Table(torch.nn.Module):
    """A prior whose skills, one-hot, are proposed by state."""

    def __init__(self):
        super().__init__()
        self.skills = SimpleNamespace(trajectory=TrajectoryNormalizer("none", 5, 1))

    def encode(self, batch):
        return batch["z"]

    def sample_skills(self, states, num_samples, how, *, generator=None):
        return torch.eye(3)[PROPOSED[states.argmax(1)]]


@pytest.mark.slow
@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_critics_learn_what_the_table_says(num_critics):
    """Batch-constrained: state 2 proposes one skill alone, and the third one, the best, is nowhere."""
    pairs = [(s, a) for s in range(4) for a in range(3)]
    q = torch.zeros(5, 3)
    for _ in range(200):
        for s, a in pairs:
            following, reward, end = leads_to(s, a)
            k = int(LENGTHS[a])
            total = sum(DISCOUNT**j * reward for j in range(k))
            beyond = 0.0 if end else q[following, PROPOSED[following]].max()
            q[s, a] = total + DISCOUNT**k * beyond
    options = {"num_critics": num_critics, "num_candidates": 2, "discount": DISCOUNT, "tau": 0.05}
    module = LatentQ(5, 1, horizon=3, latent_dim=3, hidden_dim=64, **options)
    module.prior = Table()
    outcomes = [leads_to(s, a) for s, a in pairs]
    steps = LENGTHS[[a for _, a in pairs]]
    mask = torch.arange(3) < steps[:, None]
    batch = {
        "observations": torch.eye(5)[[s for s, _ in pairs]][:, None].expand(-1, 3, -1),
        "z": torch.eye(3)[[a for _, a in pairs]],
        "rewards": torch.tensor([r for _, r, _ in outcomes])[:, None] * mask,
        "next_observations": torch.eye(5)[[n for n, _, _ in outcomes]],
        "terminations": torch.tensor([float(end) for _, _, end in outcomes]),
        "steps": steps.float(),
        "mask": mask,
        "chunks": torch.arange(len(pairs)),
    }
    optimizer = torch.optim.Adam(module.critic.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for step in range(700):
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.target_critic.update(step + 1)
    found = module.critic(torch.eye(5), torch.eye(3).expand(5, -1, -1))
    expected = q[:4].expand(num_critics, -1, -1)
    torch.testing.assert_close(found[:, :4], expected, rtol=0.02, atol=0.02)
    chosen = module.choose(torch.eye(5)[:4], None, SkillQActing(num_candidates=2)).argmax(1)
    best = PROPOSED[:4].gather(1, q[:4].gather(1, PROPOSED[:4]).argmax(1, keepdim=True))[:, 0]
    assert torch.equal(chosen, best)


def test_a_target_is_the_lesser_of_two_critics_at_the_best_of_the_one_before():
    module = LatentQ(5, 1, horizon=3, latent_dim=3, num_critics=3, num_candidates=2, discount=0.5)
    module.prior = Table()
    known = torch.tensor([[1.0, 5.0], [4.0, 2.0], [3.0, 6.0]])  # of two candidates, by each critic
    answers = {module.target_critic: known[:, None], module.critic: torch.zeros(3, 1, 1)}
    module._q = lambda critic, states, skills: answers[critic]
    batch = {
        "observations": torch.eye(5)[:1, None].expand(-1, 3, -1),
        "z": torch.eye(3)[:1],
        "rewards": torch.tensor([[1.0, 2.0, 0.0]]),
        "next_observations": torch.eye(5)[:1],
        "terminations": torch.zeros(1),
        "steps": torch.tensor([2.0]),
        "chunks": torch.arange(1),
    }
    # The best by critics 2, 0 and 1 are the candidates 1, 1 and 0; the lesser there of critics 0 and
    # 2, 1 and 0, 2 and 1: 5, 2 and 3. Two steps make 1 + 2 / 2 and a quarter of that.
    targets = torch.tensor([2 + 5 / 4, 2 + 2 / 4, 2 + 3 / 4])
    found = module.compute_loss(batch)[0]
    torch.testing.assert_close(found, targets.square().sum())


def test_skills_are_chosen_by_the_least_or_the_mean():
    """Of two candidates the second is the better one but to one critic."""
    module = LatentQ(5, 1, horizon=3, latent_dim=3, num_critics=3)
    module.prior = Table()
    module._q = lambda *_: torch.tensor([[2.0, 1.0], [2.0, 5.0], [2.0, 5.0]])[:, None]
    state = torch.eye(5)[:1]
    for critics, best in (("least", 0), ("mean", 1)):
        how = SkillQActing(num_candidates=2, critics=critics)
        assert module.choose(state, None, how).argmax() == best


@pytest.mark.parametrize(
    "wrong",
    [{"critics": "most"}, {"num_candidates": 0}, {"choice_temperature": -1.0}, {"sampler": "x"}],
)
def test_policy_refuses(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        small().make_policy(**wrong)


def test_arrivals_are_steps_that_end_at_the_goal():
    module = LatentQ(2, 1, goal_dim=1, horizon=4, latent_dim=4, goal_radius=0.5)
    batch = {
        "observations": torch.tensor([[0.0, 1, 2, 3], [0.0, 1, 1, 1]])[..., None].expand(-1, -1, 2),
        "next_observations": torch.tensor([[4.0, 0], [2.0, 0]]),
        "mask": torch.tensor([[True] * 4, [True, True, False, False]]),
        "steps": torch.tensor([4.0, 2.0]),
    }
    for goals, expected in (
        ([4.0, 2.0], [[0, 0, 0, 1], [0, 1, 0, 0]]),
        ([2.4, 1.0], [[0, 1, 0, 0], [1, 0, 0, 0]]),
        ([0.0, 9.0], [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ):
        found = module._arrivals(batch, torch.tensor(goals)[:, None])
        assert found.tolist() == expected


def test_goals_are_a_chunks_own_or_anothers():
    futures = torch.arange(1000.0)[:, None].expand(-1, 2)
    for share in (0.0, 0.3, 1.0):
        module = LatentQ(2, 1, goal_dim=1, latent_dim=4, random_goals=share)
        goals = module._goals(futures)[:, 0]
        assert (goals != futures[:, 0]).float().mean().item() == pytest.approx(share, abs=0.05)


def test_candidates_are_the_same_whenever_a_run_goes_on(tmp_path, pendulum_file, prior_ckpt):
    """In half precision, one set for each chunk."""
    data = ChunkData(str(pendulum_file), horizon=8, batch_size=32)
    found, path = [], tmp_path / "begun.ckpt"
    for steps, resumed in ((1, None), (3, path)):
        torch.manual_seed(5 + steps)
        module = small(prior_ckpt=prior_ckpt)
        trainer = quiet_trainer(tmp_path, max_steps=steps)
        trainer.fit(module, data, ckpt_path=resumed)
        trainer.save_checkpoint(path)
        found.append(module._candidates)
    assert torch.equal(*found)
    assert found[0].dtype == torch.float16
    assert found[0].shape == (data.train_data.num_starts, 3, 4)


def test_candidates_that_do_not_fit_are_refused(tmp_path, pendulum_file, prior_ckpt):
    data = ChunkData(str(pendulum_file), horizon=8)
    module = small(prior_ckpt=prior_ckpt, max_memory_gib=1e-6)
    with pytest.raises(InputError, match=r"raise model\.max_memory_gib"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, data)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"num_critics": 0}, "num_critics"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"random_goals": 1.5}, "random_goals"),
        ({"tau": 0.0}, "tau"),
    ],
)
def test_refuses(wrong, match):
    with pytest.raises(InputError, match=match):
        small(**wrong)


def test_skills_are_no_prior(tmp_path, pendulum_file):
    path = saved(small_skills(pendulum_file), tmp_path / "skills.ckpt")
    with pytest.raises(InputError, match="LatentSkills, which has no encode_all"):
        quiet_trainer(tmp_path, max_steps=1).fit(
            small(prior_ckpt=path), ChunkData(str(pendulum_file), horizon=8)
        )


def test_it_needs_a_prior(tmp_path, pendulum_file):
    with pytest.raises(InputError, match=r"needs model\.prior_ckpt"):
        quiet_trainer(tmp_path, max_steps=1).fit(small(), ChunkData(str(pendulum_file), horizon=8))
