"""Ways to act: chosen after training, checked against the role, kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from diffrl_lightning.diffusion import GaussianDiffusion, Sampling, inference_timesteps
from diffrl_lightning.types import Acting, InputError

SynthesisSampler = Literal["heun", "ddpm", "ddim", "dpmpp"]
_SKILL_EVALUATIONS = 10  # of the network, for a skill


@dataclass(frozen=True, kw_only=True)
class GaussianActing(Acting):
    """How a role with a Gaussian over actions acts.

    Args:
        temperature: factor of the standard deviation; 0 plays the mean.
    """

    temperature: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SkillActing(Acting):
    """How a role acts by skills.

    Args:
        n_action_steps: steps that a skill acts for; default H.
        action_temperature: factor of the decoded actions' standard deviation; 0 plays the mean.
    """

    n_action_steps: int | None = None
    action_temperature: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SkillSampling(SkillActing, Sampling):
    """How skills are drawn from a diffusion prior, by default with 10 evaluations, and act.

    Args:
        guidance_scale: classifier-free weight of the state: 0 is unconditional, 1 conditional.
    """

    guidance_scale: float = 1.0

    def timesteps(self, diffusion: GaussianDiffusion) -> list[int]:
        """The steps of the prior to evaluate the network at, descending."""
        length, wanted = diffusion.num_train_timesteps, self.num_inference_steps
        return inference_timesteps(length, wanted or min(_SKILL_EVALUATIONS, length))


@dataclass(frozen=True, kw_only=True)
class SynthesisSampling(Sampling):
    """How a synthesizer samples.

    The sampler may be ``heun``, EDM's stochastic one, too. Defaults are those of the process: heun with
    31 evaluations for ``edm``, ddim with T for ``ddpm``.

    Args:
        target_return: condition on this return to go, 0 the lowest and 1 the highest of the data.
        task: condition on this dataset of the list that was trained on.
        guidance_scale: classifier-free weight of the conditions: 0 is unconditional, 1 conditional.
        bound_actions: clip actions to the environment's bounds.
        bound_states: reject samples with a state outside the data's bounds in any dimension, and draw
            them anew, up to 20 times; states that episodes end in do not count. Where episodes end
            at a boundary of the states, samples beyond it claim that they go on.
    """

    sampler: SynthesisSampler | None = None  # type: ignore[assignment]
    target_return: float | None = None
    task: int | None = None
    guidance_scale: float = 1.0
    bound_actions: bool = True
    bound_states: bool = False


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
    """What :func:`to_plain` has written, of this class; None where nothing was.

    Raises:
        InputError: if it is of another class, or a value is out of range.
    """
    if kind is None or stored is None:
        return None
    values = stored.get("init_args") if isinstance(stored, Mapping) else None
    if not isinstance(values, Mapping) or stored.get("class_path") != kind.__name__:
        raise InputError(f"The checkpoint's acting is no {kind.__name__}: use another checkpoint.")
    names = {field.name for field in fields(kind)}
    return kind(**{name: x for name, x in values.items() if name in names})
