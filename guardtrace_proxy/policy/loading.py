"""From files to effective policies: inheritance, checks, and where every value came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guardtrace_proxy.policy.doubts import doubts, outvoted, without_effect
from guardtrace_proxy.policy.errors import PolicyError, Problem
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.policy.yaml_file import BadYaml, YamlFile, problems_of, read_yaml

PRESETS = Path(__file__).parent / "presets"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class LoadedPolicy:
    """An effective policy. ``origins`` says of each dotted key which file and line it came from, or ``default``;
    ``written`` are those that stand in somebody's file rather than in a preset."""

    policy: Policy
    origins: dict[str, str]
    sha256: str
    warnings: tuple[str, ...]
    written: frozenset[str]


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
    distances: dict[str, int] = {}
    for distance, file in reversed([*enumerate(chain)]):
        _merge(merged, file.content)
        for key in _leaves(file.content):
            origins[key], distances[key] = _origin(file, key), distance
    merged.setdefault("version", None)
    try:
        policy = Policy.model_validate(merged)
    except ValidationError as error:
        raise PolicyError([_at_origin(problem, chain) for problem in problems_of(error, Policy, chain[0])]) from None
    # What a preset says beside the values of a file that extends it is nobody's mistake.
    written = frozenset(key for file in chain if not _is_preset(file.path) for key in _leaves(file.content))
    idle = (f"{key} has no effect {why} ({origins[key]})" for key, why in without_effect(policy, written))
    decided = (
        f"{own} ({origins[own]}) decides for {section}, not {general} ({origins[general]})"
        for section, own, general in outvoted(policy, distances)
    )
    warnings = (*doubts(policy), *decided, *idle)
    effective = policy.model_dump(mode="json")
    for key in _leaves(effective):
        origins.setdefault(key, "default")
    digest = hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()
    return LoadedPolicy(policy, origins, digest, warnings, written)


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
        if "upstreams" in file.content or "tenants" in file.content:
            what = f"this is a settings file, not a policy: guardtrace check config {current}"
            raise PolicyError([Problem(str(current), None, "", what)])
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
            beside = {path.stem for path in current.parent.glob("*.yaml")} - {current.stem}
            known = sorted(beside | {path.stem for path in PRESETS.glob("*.yaml")})
            raise PolicyError([file.problem("extends", f"there is no policy {name!r}; known: {', '.join(known)}")])
        current = found


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = deepcopy(value)


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _is_preset(path: Path) -> bool:
    return path.resolve().parent == PRESETS.resolve()


def _origin(file: YamlFile, key: str) -> str:
    if _is_preset(file.path):
        return f"preset {file.path.stem}:{file.line(key)}"
    return f"{file.path}:{file.line(key)}"


def _at_origin(problem: Problem, chain: list[YamlFile]) -> Problem:
    """The problem at the file of the chain that holds the key."""
    for file in chain:
        if problem.key in file.lines:
            return file.problem(problem.key, problem.message)
    return problem
