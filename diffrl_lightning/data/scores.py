"""Reference scores for normalised returns."""

from __future__ import annotations

# Random and expert return of each environment family, as D4RL's infos.py lists them.
D4RL_REFERENCES: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}


def d4rl_reference(env_id: str) -> tuple[float, float] | None:
    """D4RL's random and expert return for a Gymnasium id, or None where there is none."""
    return D4RL_REFERENCES.get(env_id.split("-")[0].lower())
