"""Plans over time beside what was executed, where there is no maze."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from diffrl_lightning.figures.panels import panels, share_legend
from diffrl_lightning.types import Episode, PlanSnapshot

_EXECUTED, _PLAN = "0.15", "tab:red"
# Without its palest part, which does not show on white.
_VALUES = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1, 256)))
_WINDOW = 200  # environment steps


def draw_imagined(episode: Episode, *, num_dims: int = 4, num_plans: int = 6) -> Figure:
    """Imagined against executed observations, a panel for each of a few of their dimensions.

    The dimensions are those of the largest standard deviation along the path, the plans the first that
    do not overlap. Candidates are shaded by value from the worst to the best of their plan, since
    values differ more between states than within a plan; the range stands above the first panel.

    Args:
        episode: with a path and snapshots.
        num_dims: panels, at most.
        num_plans: plans drawn, at most; they begin within 15 times the length of a plan, so that one
            can still be made out, and within 200 steps.
    """
    plans = _apart(episode.snapshots, num_plans)
    end, width = int(_steps(plans[-1])[-1]), plans[0].observations.shape[1]
    path = np.array(episode.path)[: end + 1, :width]  # (T, O), without a goal
    dims = sorted(np.argsort(-path.std(0), kind="stable")[:num_dims].tolist())
    figure, grid = panels((11, 1.9 * len(dims) + 1), len(dims), sharex=True)
    axes = grid[:, 0]
    for axis, dim in zip(axes, dims, strict=True):
        _panel(axis, path[:, dim], plans, dim)
        axis.set_ylabel(f"observation {dim}")
    axes[-1].set_xlabel("environment step")
    axes[-1].set_xlim(-0.01 * end, 1.01 * end + 1e-3)
    outcome = f"return {episode.episode_return:.4g} in {episode.length} steps"
    figure.suptitle(f"Imagined against executed, {outcome}", fontsize=12)
    share_legend(figure, axes[0])
    if any(_has_choice(plan) for plan in plans):
        _explain_values(figure, axes, plans)
    return figure


def _apart(snapshots: list[PlanSnapshot], most: int) -> list[PlanSnapshot]:
    """The first plans of which each begins where the one before has ended."""
    chosen = snapshots[:1]
    window = min(_WINDOW, 15 * chosen[0].stride * len(chosen[0].observations))
    for snapshot in snapshots[1:]:
        if len(chosen) == most or snapshot.step >= window:
            break
        if snapshot.step >= _steps(chosen[-1])[-1]:
            chosen.append(snapshot)
    return chosen


def _steps(plan: PlanSnapshot) -> np.ndarray:
    """The environment steps (H,) of a plan's steps."""
    return plan.step + plan.stride * np.arange(len(plan.observations))


def _has_choice(plan: PlanSnapshot) -> bool:
    return plan.values is not None and len(plan.values) > 1


def _panel(axis: Axes, executed: np.ndarray, plans: list[PlanSnapshot], dim: int) -> None:
    axis.plot(executed, color=_EXECUTED, lw=1.6, label="executed", zorder=3)
    for plan in plans:
        label = None if plan is not plans[0] else "imagined"
        steps = _steps(plan)
        if _has_choice(plan):
            _candidates(axis, steps, plan, dim)
        axis.plot(
            steps, plan.observations[:, dim], ".-", color=_PLAN, lw=1.5, ms=3, label=label, zorder=4
        )
        axis.plot(
            steps[0], plan.observations[0, dim], "o", color=_PLAN, ms=5, mec="white", zorder=5
        )
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)


def _candidates(axis: Axes, steps: np.ndarray, plan: PlanSnapshot, dim: int) -> None:
    assert plan.candidates is not None
    ys = plan.candidates[..., dim]
    lines = np.stack([np.broadcast_to(steps, ys.shape), ys], -1)  # (K, H, 2)
    axis.add_collection(
        LineCollection(list(lines), array=plan.values, cmap=_VALUES, linewidths=0.9, zorder=2)
    )
    axis.autoscale_view()


def _explain_values(figure: Figure, axes: np.ndarray, plans: list[PlanSnapshot]) -> None:
    for plan in plans:
        if plan.values is not None:
            text = f"value {plan.values.min():.2f} to {plan.values.max():.2f}"
            at = (plan.step, 1.02)
            axes[0].annotate(text, at, xycoords=("data", "axes fraction"), fontsize=8, color="0.3")
    mappable = ScalarMappable(cmap=_VALUES)
    bar = figure.colorbar(mappable, ax=axes.tolist(), aspect=45, pad=0.01)
    bar.set_ticks([0, 1], labels=["worst", "best"])
    bar.set_label("value of candidate, among those of its plan", labelpad=-18)
    bar.outline.set_visible(False)
