"""YAML files with line numbers: what a key's value is and where it stands."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from guardtrace_proxy.policy.errors import Problem

MAX_FILE_BYTES = 262_144
MAX_DEPTH = 20
MAX_NODES = 20_000
"""Nodes after aliases are followed: a file of aliases to aliases is refused."""

PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
MISFITS = (yaml.YAMLError, ValueError, LookupError, AttributeError)
"""What PyYAML raises over a value, the last two where it isn't what its tag says."""
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


@dataclass(frozen=True)
class YamlFile:
    """A parsed file. ``lines`` maps a dotted key to its line."""

    path: Path
    content: dict[str, Any]
    lines: dict[str, int]

    def line(self, key: str) -> int | None:
        """The line of a key, or of the nearest one above it."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key.rpartition(".")[0]
        return None

    def problem(self, key: str, message: str) -> Problem:
        """A problem at a key."""
        return Problem(str(self.path), self.line(key), key, message)


class BadYaml(Exception):
    """The file can't be read as settings."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_yaml(path: Path) -> YamlFile:
    """Read a file whose root is a mapping; raises BadYaml."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadYaml(Problem(str(path), None, "", f"can't be read: {error.strerror}", may_pass=True)) from None
    if len(data) > MAX_FILE_BYTES:
        raise BadYaml(Problem(str(path), None, "", f"larger than {MAX_FILE_BYTES:,} bytes"))
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        root = loader.get_single_node()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        message = str(getattr(error, "problem", None) or "not UTF-8 YAML")
        raise BadYaml(Problem(str(path), mark.line + 1 if mark else None, "", message)) from None
    if root is None:
        return YamlFile(path, {}, {})
    if not isinstance(root, yaml.MappingNode):
        raise BadYaml(Problem(str(path), root.start_mark.line + 1, "", "expected keys and values"))
    reader = _Reader(path, loader)
    content = reader.read(root, "")
    return YamlFile(path, content, reader.lines)


class _Reader:
    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.lines: dict[str, int] = {}
        self._path = path
        self._loader = loader
        self._nodes = 0

    def read(self, node: yaml.Node, key: str, depth: int = 0) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise self._bad(node, key[:80], f"more than {MAX_DEPTH} levels, aliases included")
        if self._nodes > MAX_NODES:
            raise self._bad(node, key, f"more than {MAX_NODES:,} values, aliases included")
        if key:
            self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.CollectionNode) and node.tag not in PLAIN_TAGS:
            raise self._bad(node, key, f"the tag {node.tag} isn't supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, f"{key}.{index}", depth + 1) for index, child in enumerate(node.value)]
        if _is_another_number(node):
            raise self._bad(node, key, "write numbers in decimal, without a leading zero or colons")
        try:
            value = self._loader.construct_object(node, deep=True)
        except MISFITS:
            raise self._bad(node, key, "a value that can't be read") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._bad(node, key, f"{node.value} is no number that can be used")
        return value

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if name_node.tag == "tag:yaml.org,2002:merge":
                raise self._bad(name_node, key, "merge keys (<<) aren't supported; use extends")
            if not isinstance(name_node, yaml.ScalarNode):
                raise self._bad(name_node, key, "expected a plain key")
            name = str(name_node.value)
            inner = f"{key}.{name}" if key else name
            if name in content:
                raise self._bad(name_node, inner, "the key occurs twice")
            self.lines[inner] = name_node.start_mark.line + 1
            content[name] = self.read(value_node, inner, depth + 1)
        return content

    def _bad(self, node: yaml.Node, key: str, message: str) -> BadYaml:
        return BadYaml(Problem(str(self._path), node.start_mark.line + 1, key, message))


def _is_another_number(node: yaml.Node) -> bool:
    """To YAML 1.1 ``0500`` is 320 and ``1:00`` is 60: nobody who writes that means it."""
    if node.tag == "tag:yaml.org,2002:int":
        return WHOLE.fullmatch(node.value) is None
    return node.tag == "tag:yaml.org,2002:float" and ":" in node.value


def problems_of(error: ValidationError, model: type[BaseModel], file: YamlFile) -> list[Problem]:
    """What pydantic found, with place and the nearest valid key."""
    problems = []
    for entry in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in entry["loc"]]
        key = ".".join(path)
        if entry["type"] == "extra_forbidden":
            problems.append(file.problem(key, _unknown(path, model)))
        elif entry["type"] == "missing":
            problems.append(file.problem(key, "required, but missing"))
        elif entry["type"] in ("model_type", "dict_type"):  # pydantic's words name our classes
            problems.append(file.problem(key, "expected keys with values, as in {key: value}"))
        else:
            message = entry["msg"].removeprefix("Value error, ")
            problems.append(file.problem(key, message[0].lower() + message[1:]))
    return problems


def _unknown(path: list[str], model: type[BaseModel]) -> str:
    names = _keys_at(path[:-1], model)
    close = get_close_matches(path[-1], names, n=1, cutoff=0.5)
    if close:
        return f'unknown key; did you mean "{close[0]}"?'
    return f"unknown key; valid ones are {', '.join(sorted(names))}" if names else "unknown key"


def _keys_at(path: list[str], model: type[BaseModel]) -> list[str]:
    """The valid keys of a section; names of upstreams and tenants are passed over."""
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue
        inner = _model_in(field.annotation)
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _model_in(argument)
        if inner is not None:
            return inner
    return None
