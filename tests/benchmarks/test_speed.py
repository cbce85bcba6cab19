"""Ratios of speed, each measured against its baseline in the same run; they never fail a build.

``pytest tests/benchmarks --benchmark-enable -s`` prints them.
"""

import itertools
import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from diffrl_lightning import IDQL, Diffuser, DiffusionQL, PlanActing, SequenceData, TrajectoryValue
from diffrl_lightning.data import Windows
from diffrl_lightning.data.episodes import Episodes
from diffrl_lightning.data.sources import SourceOptions, d4rl


def episodes(count=200, length=1000, observation_dim=11, action_dim=3):
    n = count * length
    rng = np.random.default_rng(0)
    truncations = np.zeros(n, bool)
    truncations[length - 1 :: length] = True
    return Episodes(
        observations=rng.normal(size=(n + count, observation_dim)).astype(np.float32),
        actions=rng.normal(size=(n, action_dim)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        terminations=np.zeros(n, bool),
        truncations=truncations,
        offsets=np.arange(0, n + 1, length),
        final_observed=np.ones(count, bool),
    )


@pytest.fixture
def unit():
    """Seconds of a 1024 x 1024 x 1024 float32 matrix product, which other times are told in."""
    a, b = torch.randn(2, 1024, 1024)
    return lambda: median_seconds(lambda: a @ b, 9)


def median_seconds(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def test_whole_batches_against_per_item_collate(benchmark):
    """A batch of 256 windows by one indexing, and item by item with PyTorch's collate."""
    windows = Windows(episodes(), horizon=32)
    indices = torch.randperm(len(windows))[:256].tolist()
    whole = benchmark(windows.__getitems__, indices)
    items = default_collate([windows[i] for i in indices])
    assert all(torch.equal(whole[name], items[name]) for name in whole)
    batch = median_seconds(lambda: windows.__getitems__(indices), 50)
    each = median_seconds(lambda: default_collate([windows[i] for i in indices]), 5)
    print(f"\nbatch of 256 windows: 1/{each / batch:.0f} of the per-item collate")
    benchmark.extra_info["ratio"] = each / batch


def test_real_file_is_ready(benchmark, shared_data):
    """Reading 200,000 steps from HDF5."""
    path = str(shared_data / "hopper-medium.hdf5")
    data = benchmark(d4rl.load, path, SourceOptions())
    assert data.num_steps == 200_000


class Steps(pl.Callback):
    """Times the training steps of a fit, from the end of the tenth on."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 10:
            self.begin = time.perf_counter()
        self.end, self.last = time.perf_counter(), trainer.global_step

    @property
    def seconds(self):
        return (self.end - self.begin) / (self.last - 10)


def raw_loop(module, data, steps):
    """The same step, with nothing around it; seconds a step."""
    torch.manual_seed(0)
    optimizer = module.configure_optimizers()
    batches = iter(data.train_dataloader())
    for step in range(steps):
        if step == 10:
            begin = time.perf_counter()
        loss, _ = module.compute_loss(next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(step + 1)
    return (time.perf_counter() - begin) / (steps - 10)


@pytest.mark.skipif("not config.getoption('--benchmark-enable', default=False)")
def test_fit_against_a_raw_loop(benchmark, tmp_path):
    """Lightning's loop at the quick start's size against a bare loop, taken in turns."""
    data = SequenceData(
        "pointmaze/umaze", horizon=24, stride=8, padding="edge", generate_steps=20_000
    )
    data.prepare_data()
    data.setup("fit")

    def module():
        torch.manual_seed(0)
        return Diffuser(4, 2, 2, horizon=24, stride=8, dim=16, dim_mults=(1, 2, 4))

    def fit(steps=110):
        timer = Steps()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[timer],
            default_root_dir=tmp_path,
            limit_val_batches=0,
            enable_checkpointing=False,
        )
        trainer.fit(module(), datamodule=data)
        return timer.seconds

    def raw(steps=110):
        bare = module()
        bare.fit_normalizers(data)
        data.trainer = None
        return raw_loop(bare, data, steps)

    rounds = [(fit(), raw()) for _ in range(7)]
    ratio = float(np.median([a / b for a, b in rounds]))
    ratios = ", ".join(f"{a / b:.3f}" for a, b in rounds)
    print(f"\nfit / raw loop: median {ratio:.3f} of {ratios}")
    benchmark.extra_info["ratio"] = ratio
    benchmark(lambda: None)


def test_plan_of_many_environments(benchmark):
    """Plans for 50 environments as one batch, eight evaluations."""
    module = Diffuser(4, 2, goal_dim=2, horizon=24, stride=8, dim=16).eval()
    states, goals, how = torch.zeros(50, 4), torch.zeros(50, 2), PlanActing(num_inference_steps=8)
    with torch.no_grad():
        one = median_seconds(lambda: module.plan(states[:1], goals[:1], how), 5)
        plan = benchmark(module.plan, states, goals, how)
        many = median_seconds(lambda: module.plan(states, goals, how), 5)
    assert plan.actions.shape == (50, 24, 2)
    print(f"\nplans of 50 environments: {50 * one / many:.1f} times as fast as one by one")


@pytest.mark.skipif("not config.getoption('--benchmark-enable', default=False)")
def test_decision_against_the_published_recipe(benchmark):
    """Five guided DDIM steps of one plan, against 20 DDPM steps of 64 with two guide steps each."""
    module = Diffuser(11, 3, horizon=32, dim_mults=(1, 2, 4, 8), num_train_timesteps=20).eval()
    value = TrajectoryValue(11, 3, horizon=32, dim_mults=(1, 2, 4, 8)).eval()
    for net in (module, value):
        net.requires_grad_(False)
    state = torch.zeros(1, 11)
    guided = {"value_guidance_scale": 1.0}
    few = PlanActing(num_inference_steps=5, num_guide_steps=1, **guided)
    published = PlanActing(sampler="ddpm", num_candidates=64, num_guide_steps=2, **guided)

    def plan(how):
        return module.plan(state, None, how, value=value.value)

    with torch.no_grad():
        ours = benchmark(plan, few)
        slow = median_seconds(lambda: plan(published), 3)
        fast = median_seconds(lambda: plan(few), 9)
    assert ours.actions.shape == (1, 32, 3)
    print(f"\na decision is {slow / fast:.0f} times as fast as by the published recipe")
    benchmark.extra_info["ratio"] = slow / fast


def transitions(n=256, observation_dim=11, action_dim=3):
    return {
        "observations": torch.randn(n, observation_dim),
        "actions": torch.rand(n, action_dim) * 2 - 1,
        "rewards": torch.randn(n),
        "next_observations": torch.randn(n, observation_dim),
        "terminations": torch.zeros(n),
        "steps": torch.ones(n),
    }


def in_units(unit, call, repeats, rounds=5):
    """Median over rounds of a call's time, each in units taken beside it."""
    ratios = []
    for _ in range(rounds):
        before, time = unit(), median_seconds(call, repeats)
        ratios.append(time / (0.5 * (before + unit())))
    return float(np.median(ratios))


@pytest.mark.skipif("not config.getoption('--benchmark-enable', default=False)")
@pytest.mark.parametrize(
    ("role", "kwargs"),
    [(DiffusionQL, {}), (DiffusionQL, {"actor_loss": "one_step"}), (IDQL, {})],
    ids=["chain", "one_step", "idql"],
)
def test_update_and_action_of_a_policy(benchmark, unit, role, kwargs):
    """An update with 256 transitions, decisions with 1 and 50 candidates, in 1 and 50 environments."""
    module = role(11, 3, **kwargs)
    optimizer = module.configure_optimizers()
    batch = transitions()

    def update():
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for group in module.param_groups():
            torch.nn.utils.clip_grad_norm_(group["params"], 9.0)
        optimizer.step()
        for ema in module.averages():
            ema.update(5000)

    updates = in_units(unit, update, 7)
    benchmark(update)
    module.eval()
    times = {}
    with torch.no_grad():
        for candidates, n in itertools.product((1, 50), (1, 50)):
            policy = module.make_policy(num_candidates=candidates)
            policy.reset(torch.ones(n, dtype=torch.bool), range(n))
            times[candidates, n] = in_units(unit, lambda: policy.act(batch["observations"][:n]), 7)  # noqa: B023
    print(f"\n{role.__name__} {kwargs}: update {updates:.2f} units")
    for candidates in (1, 50):
        one, many = times[candidates, 1], times[candidates, 50]
        print(
            f"{candidates} candidates: decision {one:.3f} units, of 50 environments {many:.2f}: "
            f"{many / one / 50:.3f} of one alone, each"
        )
    benchmark.extra_info.update(
        update=updates, **{f"decision_{c}_{n}": t for (c, n), t in times.items()}
    )
