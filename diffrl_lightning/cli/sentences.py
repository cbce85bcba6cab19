"""What the parsers' messages mean: one sentence, without Python's types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches

from lightning.pytorch import LightningDataModule

from diffrl_lightning import public
from diffrl_lightning.types import Acting

_MOST_NAMES = 15  # of options, in a sentence
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "Iterable": "a list",
    "dict": "a dictionary",
    "timedelta": "a duration",
    "NoneType": "null",
}


def ways_to_act() -> dict[type[Acting], list[str]]:
    """The classes of choices that roles act by, each with the names of those roles."""
    found: dict[type[Acting], list[str]] = {}
    for name, cls in vars(public).items():
        kind = getattr(cls, "acting", None) if inspect.isclass(cls) else None
        if kind is not None:
            found.setdefault(kind, []).append(name)
    return found


def unknown_key(key: str, options: Iterable[str], command: str) -> str:
    """Of a key that a command does not have, at whatever depth.

    Args:
        key: with dots, as ``trainer.max_step``.
        options: all keys that there are, with dots.
        command: what the keys at the top are of.
    """
    options, group = list(options), ""
    *parents, _ = parts = key.split(".")
    for part in parents:
        if not any(option.startswith(f"{group}{part}.") for option in options):
            break
        group += f"{part}."
    inside = [option.removeprefix(group) for option in options if option.startswith(group)]
    names = list(dict.fromkeys(option.partition(".")[0] for option in inside))
    return unknown_name(group.rstrip(".") or command, parts[group.count(".")], names)


def unknown_name(of: str, name: str, accepted: Sequence[str]) -> str:
    """Of a name that something does not have: the nearest, or all that it has."""
    near = get_close_matches(name, accepted, 1, cutoff=0.7)
    listed = ", ".join(accepted[:_MOST_NAMES]) or "none"
    more = "" if len(accepted) <= _MOST_NAMES else f" and {len(accepted) - _MOST_NAMES} more"
    hint = f"did you mean {near[0]!r}?" if near else f"it has {listed}{more}."
    return f"{of} has no {name!r}: {hint}"


def unknown_argument(described: type | None, name: str, accepted: Sequence[str]) -> str:
    """Of an argument that a class does not have."""
    name, _, deeper = name.partition(".")
    if described is not Acting:
        names = [*accepted, "init_args", "class_path"] if deeper else accepted
        return unknown_name(described.__name__ if described else "This", name, names)
    kinds = ways_to_act()  # the base: no class was given
    having = [kind for kind in kinds if name in {field.name for field in fields(kind)}]
    if having:
        named = ", ".join(f"{kind.__name__} ({', '.join(kinds[kind])})" for kind in having)
        return (
            f"{name!r} needs the class that it is a field of before it, as in "
            f"--rollout.acting=CLASS: {named}."
        )
    return f"{name!r} is a field of no way to act: --rollout.acting.help=CLASS lists a class's."


def no_class(message: str) -> str | None:
    """Of a value that is no class of the kind that is wanted, if that is what a message is about."""
    wrong = re.search(
        r"import path string: (\S+)|not correspond to a subclass of (\w+)|Not a valid subclass of "
        r"(\w+)|No module named|is not iterable|Problem with given class_path",
        message,
    )
    key = re.search(r'Parser key "([^"]*)"|--(\S+?)(?:\.help)?:', message)
    if not wrong or not key:
        return None
    option = key[1] or key[2]
    given = (
        re.search(r"'class_path': '?([^',}]*)", message)
        or re.search(r"Given value: (.*)", message)
        or re.search(r"import path string: (\S+)", message)
    )
    value = given[1] if given else "that"
    names = _classes(option.rpartition(".")[2])
    if names is None:
        base = re.search(r"subclass of (\w+)|\.(\w+)(?:'>|\])", message)
        kind = (base[1] or base[2]) if base else "class"
        return f"--{option} can not be {value}: name a {kind} that can be imported."
    plain_names = [name.partition(" ")[0] for name in names]
    if value in plain_names:  # the class is right, and what stands beside it is not
        return (
            f"--{option} holds more than class_path and init_args: put its options into init_args."
        )
    near = get_close_matches(value, plain_names, 1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}."
    return f"--{option} can not be {value}: {hint}"


def _classes(option: str) -> list[str] | None:
    """The classes of this library that an option may name."""
    classes = {name: cls for name, cls in vars(public).items() if inspect.isclass(cls)}
    match option:
        case "acting":
            return [f"{k.__name__} ({', '.join(roles)})" for k, roles in ways_to_act().items()]
        case "sampling":
            return ["SynthesisSampling"]
        case "model":
            roles = [name for name, cls in classes.items() if issubclass(cls, public.Role)]
            return [name for name in roles if not inspect.isabstract(classes[name])]
        case "data":
            return [name for name, cls in classes.items() if issubclass(cls, LightningDataModule)]
    return None


def plain(message: str) -> str:
    """Any other message, without what Python calls its types."""
    if "arguments are required" in message and "model" in message:
        return "No configuration is given: add -c FILE or -c NAME; diffrl configs lists names."
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", message)
    if "Unable to load config" in text:
        key, value = text.partition(":")[0], text.partition("config ")[2].partition("\n")[0]
        return f"{key}={value.strip(chr(39))} must hold options by name, or be a YAML file of them."
    if "Expected a" in text:
        key = text.partition(":")[0]
        given = re.search(r"Given value: (.*)", text) or re.search(r"Got value: (.*)", text)
        kinds = re.findall(r"Expected an? ([^\n]+?)(?:\. Got value: .*)?$", text, re.MULTILINE)
        text = f"{key}={given[1] if given else 'this'} must be {_alternatives(kinds)}"
    text = text.replace("required: fit.", "required: --").replace("NoneType", "null")
    return re.sub(r"\s*\n\s*", " ", text).strip().rstrip(".") + "."


def _alternatives(kinds: Iterable[str]) -> str:
    """What a value may be, of what Python calls these types."""
    choices: list[str] = []
    words: list[str] = []
    for kind in kinds:
        if literal := re.match(r"typing\.Literal\[(.*)\]", kind):
            choices += literal[1].split(", ")
        elif length := re.match(r"tuple with (\d+) elements", kind):
            words.append(f"a list of {length[1]}")
        elif not kind.startswith("path but"):
            name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
            words.append(_KINDS.get(name, name))
    if choices:
        words.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    if words in ([], ["null"]):
        return "of another kind, or left out"
    if "a number" in words:
        words = [word for word in words if word != "a whole number"]
    return " or ".join(dict.fromkeys(words))
