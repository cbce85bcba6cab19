"""Plans over a maze."""

import numpy as np

from diffrl_lightning.figures.mazes import draw_plans
from diffrl_lightning.types import Episode

WALLS = np.array([[True, True, True], [True, False, False]])


def episode(i):
    path = [np.zeros(6), np.ones(6)]
    plans = [np.array([[0.0, 0.0], [0.5, -0.5], [1.0, -0.5]])]
    return Episode(i, 0, start=np.zeros(6), episode_return=float(i), path=path, plans=plans)


def test_a_panel_an_episode_and_none_besides():
    figure = draw_plans(WALLS, 2.0, [episode(i) for i in range(4)], 0.45)
    assert [axis.axison for axis in figure.axes] == [True] * 4 + [False] * 2
    assert [axis.get_title() for axis in figure.axes[:4]] == [f"return {i}" for i in range(4)]
    assert figure.axes[0].get_xlim() == (-3, 3)
    assert figure.axes[0].get_ylim() == (-2, 2)
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "path taken", "plan", "start", "goal",
    ]  # fmt: skip
    figure.canvas.draw()
