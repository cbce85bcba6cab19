"""Ways to act: chosen after training, checked against the role, kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from diffrl_lightning.types import Acting, InputError


def chosen_acting(role: Any, how: Acting | None, choices: Mapping[str, Any]) -> Acting:
    """How a role is to act.

    Args:
        role: whose ``acting`` is the class of its choices.
        how: an instance of that; default the role's ``default_acting``.
        choices: fields to set in it.

    Raises:
        InputError: if the role does not act, or not by these choices; it names those that it has.
    """
    name, kind = type(role).__name__, role.acting
    if kind is None:
        raise InputError(f"{name} does not act: roll out a role that does.")
    how = role.default_acting or kind() if how is None else how
    names = [field.name for field in fields(kind)]
    taken = f"acts by {kind.__name__}, which has {', '.join(names) or 'nothing to choose'}."
    if type(how) is not kind:
        raise InputError(f"{type(how).__name__} is not how {name} acts: it {taken}")
    for unknown in set(choices) - set(names):
        raise InputError(f"{unknown!r} is unknown: {name} {taken}")
    return replace(how, **choices)


def to_plain(how: Acting | None) -> dict[str, Any] | None:
    """A way to act as plain values, for checkpoints and results."""
    return None if how is None else {"class_path": type(how).__name__, "init_args": asdict(how)}


def from_plain(kind: type[Acting] | None, stored: Mapping[str, Any] | None) -> Acting | None:
    """What :func:`to_plain` has written, of this class; None where nothing was, or another."""
    if kind is None or stored is None or stored["class_path"] != kind.__name__:
        return None
    names = {field.name for field in fields(kind)}
    return kind(**{name: x for name, x in stored["init_args"].items() if name in names})
