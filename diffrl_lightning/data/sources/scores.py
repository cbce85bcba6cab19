"""Reference scores for normalised returns."""

from __future__ import annotations

import math

from diffrl_lightning.types import InputError

# Random and expert return of each family of environments, from D4RL's infos.py; the keys begin the
# Gymnasium ids. Maze2D's are left out: they do not carry over to PointMaze.
D4RL_REFERENCES: dict[str, tuple[float, float]] = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.63, 4592.3),
    "AntMaze": (0.0, 1.0),
    "FrankaKitchen": (0.0, 4.0),
    "AdroitHandPen": (96.26, 3076.83),
}


def d4rl_reference(env_id: str) -> tuple[float, float] | None:
    """D4RL's random and expert return for a Gymnasium id, or None where there is none."""
    scores = (scores for name, scores in D4RL_REFERENCES.items() if env_id.startswith(name))
    return next(scores, None)


def check_scores(scores: tuple[float, float] | None, origin: str) -> None:
    """Refuse reference scores that make no scale, as NaN.

    Raises:
        InputError: naming them and where they are from.
    """
    if scores is None:
        return
    low, high = scores
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"{origin}={tuple(scores)} must be a lower and a higher return: give ref_scores, the "
            "return of a random and of an expert policy."
        )
