"""Plans over time: which are drawn, and where."""

import numpy as np
from matplotlib.collections import LineCollection

from diffrl_lightning.figures.trajectories import draw_imagined
from diffrl_lightning.types import Episode, PlanSnapshot


def episode_of(steps, *, horizon=8, stride=1, num_candidates=0, dims=6):
    """An episode of walks, of which each dimension spreads more than the one before."""
    rng = np.random.default_rng(0)
    path = rng.normal(size=(90, dims)).cumsum(0) * 2.0 ** np.arange(dims)
    snapshots = []
    for step in steps:
        shape = (num_candidates, horizon, dims - 2)
        candidates = rng.normal(size=shape) if num_candidates else None
        values = np.sort(rng.normal(size=num_candidates)) if num_candidates else None
        plan = rng.normal(size=(horizon, dims - 2))
        snapshots.append(PlanSnapshot(step, stride, plan, candidates, values))
    return Episode(0, 0, length=90, episode_return=-3.5, path=list(path), snapshots=snapshots)


def plans_in(axis):
    """The steps of the plans that a panel shows."""
    return [line.get_xdata().tolist() for line in axis.lines[1:] if len(line.get_xdata()) > 1]


def test_panels_plans_and_candidates():
    episode = episode_of([0, 20, 40, 60], num_candidates=5)
    figure = draw_imagined(episode, num_dims=2, num_plans=3)
    first, second, bar = figure.axes
    assert [axis.get_ylabel() for axis in (first, second)] == ["observation 2", "observation 3"]
    assert bar.get_ylabel().startswith("value of candidate")
    assert "return -3.5" in figure.get_suptitle()
    for axis, dim in ((first, 2), (second, 3)):
        executed = np.array(episode.path)[:48, dim]
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), executed)
        assert plans_in(axis) == [list(range(k, k + 8)) for k in (0, 20, 40)]
        np.testing.assert_array_equal(
            axis.lines[1].get_ydata(), episode.snapshots[0].observations[:, dim]
        )
        shaded = [c for c in axis.collections if isinstance(c, LineCollection)]
        assert [len(c.get_segments()) for c in shaded] == [5, 5, 5]
        np.testing.assert_array_equal(shaded[1].get_array(), episode.snapshots[1].values)
        np.testing.assert_array_equal(
            shaded[1].get_segments()[4][:, 1], episode.snapshots[1].candidates[4, :, dim]
        )
    axes = draw_imagined(episode).axes
    assert [axis.get_ylabel() for axis in axes[:-1]] == [f"observation {i}" for i in range(4)]


def test_plans_that_overlap_are_left_out_and_one_is_always_drawn():
    figure = draw_imagined(episode_of([0, 20, 40, 60], stride=4))
    assert len(figure.axes) == 4, "and without candidates there is no bar"
    assert plans_in(figure.axes[0]) == [list(range(0, 32, 4)), list(range(40, 72, 4))]
    figure = draw_imagined(episode_of([0, 20], horizon=256))
    assert plans_in(figure.axes[0]) == [list(range(256))]
    figure = draw_imagined(episode_of([0, 20, 40, 60], horizon=2, dims=3))
    assert plans_in(figure.axes[0]) == [[0, 1], [20, 21]], "a short plan can still be made out"
    figure.canvas.draw()
