"""Tables of what settings do: each allowed value of each one must show in what can be seen from outside.

`tests/policy/test_effects.py` has the table of the policy, `tests/server/test_effects.py` that of guardtrace.yaml. Both are
dicts from a setting's dotted name to an `Effect`; tests fail for a setting, or a value of an enum, that its table lacks.

To add a setting, add a line to its table:

    "hold_limit_ms": Effect((1000, 9000), after_two_seconds, beside={"on_auditor_failure": "hold"}),

- `values`: two or more; for an enum or a bool all that are allowed.
- the scenario takes what the settings came to (the policy; a `Site` that can be served) and returns what was seen: bytes,
  audits with their times, a status. Nothing that differs from run to run may be in it, such as ports and ids.
- `beside`: what the other settings must be for this one to matter; `along`: what one value needs besides.
- `same_as`: a value that means the same as another by its definition (no own action means the policy's).
- `refused`: values that must be refused at start, such as those whose feature isn't built yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

Settings = dict[str, Any]


@dataclass(frozen=True)
class Effect:
    """How a setting shows; see above."""

    values: Sequence[Any]
    scenario: Callable[..., object]
    beside: Settings = field(default_factory=dict)
    along: Mapping[Any, Settings] = field(default_factory=dict)
    same_as: Mapping[Any, Any] = field(default_factory=dict)
    refused: Sequence[Any] = ()

    def settings(self, key: str, value: Any) -> Settings:
        """The settings that the scenario is to see, nested as in a file."""
        flat = {**self.beside, **(self.along.get(value, {}) if self.along else {}), key: value}
        return nested(flat)


def nested(flat: Settings) -> Settings:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``. ``NAME`` becomes ``default``."""
    content: Settings = {}
    for key, value in flat.items():
        *sections, last = key.replace(".NAME", ".default").split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return content


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings with their types; ``NAME`` stands for a key of a mapping."""
    for name, info in model.model_fields.items():
        inner = info.annotation
        values = get_args(inner)[1:]
        models = [value for value in get_args(inner) if isinstance(value, type) and issubclass(value, BaseModel)]
        if type(None) in values and models:
            yield f"{prefix}{name}", inner
            inner = models[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{prefix}{name}.")
        elif values and isinstance(values[0], type) and issubclass(values[0], BaseModel):
            yield from leaves(values[0], f"{prefix}{name}.NAME.")
        else:
            yield f"{prefix}{name}", inner


def allowed(annotation: Any) -> list[Any]:
    """The values of an enum, a Literal or a bool, None included where it may be left out; none for open types."""
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return [member.value for member in annotation]
        return [False, True] if annotation is bool else []
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Annotated, list, dict):
        return []
    inner = [value for argument in get_args(annotation) for value in allowed(argument)]
    return [*inner, None] if inner and type(None) in get_args(annotation) else inner


def missing(model: type[BaseModel], table: Mapping[str, Effect]) -> list[str]:
    """What a table lacks or has too much: settings, and values of those with a closed set of them."""
    found = dict(leaves(model))
    said = [f"{key}: no effect in the table" for key in found.keys() - table.keys()]
    said += [f"{key}: no such setting" for key in table.keys() - found.keys()]
    for key in found.keys() & table.keys():
        effect = table[key]
        listed = [*effect.values, *effect.refused]
        said += [f"{key}: {value!r} isn't in the table" for value in allowed(found[key]) if value not in listed]
        if len(effect.values) < 2 and not effect.refused:
            said.append(f"{key}: needs another value, or one that is refused")
    return sorted(said)


def check(effect: Effect, seen: Callable[[Any], object], *, again: bool = False) -> None:
    """Each value shows. ``seen``: what the scenario sees under a value; ``again``: the same one is tried twice."""
    outcomes = [seen(value) for value in effect.values]
    is_steady = not again or seen(effect.values[0]) == outcomes[0]
    assert is_steady, "the outcome isn't the setting's alone: the same value gave another"
    for number, value in enumerate(effect.values):
        for other in range(number):
            same = bool(effect.same_as) and effect.same_as.get(value, value) == effect.values[other]
            gives_the_same = outcomes[number] == outcomes[other]
            assert gives_the_same is same, (
                f"{effect.values[other]!r} and {value!r} give {'other outcomes' if same else 'the same outcome'}: "
                f"{str(outcomes[number])[:500]}"
            )
