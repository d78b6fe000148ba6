"""From files to effective policies: inheritance, checks, and where every value came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guardtrace_proxy.policy.errors import PolicyError, Problem
from guardtrace_proxy.policy.schema import Action, Mode, Policy, ReasoningField
from guardtrace_proxy.policy.yaml_file import BadYaml, YamlFile, problems_of, read_yaml

PRESETS = Path(__file__).parent / "presets"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
SEVERITY = list(Action)
STRICTNESS = [Mode.MONITOR, Mode.LAG, Mode.HOLD, Mode.WITHHOLD]


@dataclass(frozen=True)
class LoadedPolicy:
    """An effective policy. ``origins`` says of each dotted key which file and line it came from, or ``default``."""

    policy: Policy
    origins: dict[str, str]
    sha256: str
    warnings: tuple[str, ...]


def find_policy(name: str, folder: Path) -> Path | None:
    """``NAME.yaml`` in the folder, else the preset of that name."""
    if not NAME.fullmatch(name):
        return None
    for place in (folder, PRESETS):
        path = place / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def load_policy(path: Path) -> LoadedPolicy:
    """Read a policy with everything that it extends; raises PolicyError with all problems."""
    chain = _chain(path)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in reversed(chain):
        _merge(merged, file.content)
        for key in _leaves(file.content):
            origins[key] = _origin(file, key)
    merged.setdefault("version", None)
    try:
        policy = Policy.model_validate(merged)
    except ValidationError as error:
        raise PolicyError([_at_origin(problem, chain) for problem in problems_of(error, Policy, chain[0])]) from None
    warnings = (*_warnings(policy), *_without_effect(policy, origins))
    effective = policy.model_dump(mode="json")
    for key in _leaves(effective):
        origins.setdefault(key, "default")
    digest = hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()
    return LoadedPolicy(policy, origins, digest, warnings)


def _chain(path: Path) -> list[YamlFile]:
    """The file, what it extends, and so on."""
    chain: list[YamlFile] = []
    current = path
    while True:
        if any(file.path.resolve() == current.resolve() for file in chain):
            names = " -> ".join([*(file.path.stem for file in chain), current.stem])
            raise PolicyError([chain[-1].problem("extends", f"goes round in a circle: {names}")])
        try:
            file = read_yaml(current)
        except BadYaml as error:
            raise PolicyError([error.problem]) from None
        chain.append(file)
        name = file.content.get("extends")
        if name is None:
            return chain
        if file.content.get("version") != 1:
            raise PolicyError([file.problem("version", "expected 1")])
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PolicyError([file.problem("extends", "expected the name of a policy or a preset")])
        # A file may refine the preset that it is named after.
        folder = PRESETS if name == current.stem else current.parent
        found = find_policy(name, folder)
        if found is None:
            known = sorted({p.stem for p in (*current.parent.glob("*.yaml"), *PRESETS.glob("*.yaml"))})
            raise PolicyError([file.problem("extends", f"there is no policy {name!r}; known: {', '.join(known)}")])
        current = found


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = json.loads(json.dumps(value)) if isinstance(value, (dict, list)) else value


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _origin(file: YamlFile, key: str) -> str:
    if file.path.resolve().parent == PRESETS.resolve():
        return f"preset {file.path.stem}:{file.line(key)}"
    return f"{file.path}:{file.line(key)}"


def _at_origin(problem: Problem, chain: list[YamlFile]) -> Problem:
    """The problem at the file of the chain that holds the key."""
    for file in chain:
        if problem.key in file.lines:
            return file.problem(problem.key, problem.message)
    return problem


def _warnings(policy: Policy) -> Iterator[str]:
    if STRICTNESS.index(policy.thinking.mode) < STRICTNESS.index(policy.answer.mode):
        yield (
            "thinking is guarded less than the answer: harmful reasoning reaches clients, and inline thinking that "
            "never closes is held like the answer"
        )
    for name in ("thinking", "answering"):
        rules = policy.phase(name)
        actions = rules.actions
        if SEVERITY.index(actions.harmful) < SEVERITY.index(actions.potentially_harmful):
            yield f"{name}: the action for harmful text is milder than the one for potentially harmful text"
        if rules.mode is Mode.MONITOR and Action.CUT in (actions.harmful, actions.potentially_harmful):
            yield f"{name}: mode is monitor, so redact and cut are only recorded"
        if rules.mode is Mode.LAG and Action.REDACT in (actions.harmful, actions.potentially_harmful):
            yield f"{name}: mode is lag, so redact can't take back what has left before its verdict"


def _without_effect(policy: Policy, origins: dict[str, str]) -> Iterator[str]:
    """Settings that somebody wrote down and that do nothing beside the others."""
    for name, settings in (("thinking", policy.thinking), ("answer", policy.answer)):
        if settings.mode is not Mode.LAG and f"{name}.max_lag" in origins:
            yield f"{name}.max_lag has no effect in mode {settings.mode.value}"
    withheld = policy.thinking.mode is Mode.WITHHOLD
    if withheld and any(key.startswith("thinking.actions.") for key in origins):
        yield "thinking.actions has no effect in mode withhold: verdicts on what nobody sees are only recorded"
    if withheld and policy.reasoning_field not in (ReasoningField.AS_IS, ReasoningField.STRIP):
        yield f"reasoning_field: {policy.reasoning_field.value} has no effect where thinking is withheld"
    actions = [action for name in ("thinking", "answering") for _, action in policy.phase(name).actions]
    if policy.redaction.localize and Action.REDACT not in actions:
        yield "redaction.localize has no effect where no action is redact"
