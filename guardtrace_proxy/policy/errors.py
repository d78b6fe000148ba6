"""What is wrong with a settings file, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong. ``key`` is dotted; ``line`` counts from 1, None where the file has no place for it.
    ``may_pass``: the file couldn't be read, which says nothing of what stands in it."""

    file: str
    line: int | None
    key: str
    message: str
    may_pass: bool = False

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class SettingsError(Exception):
    """A settings file that isn't used, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)

    @property
    def may_pass(self) -> bool:
        """Whether the same files may be right when they are read again."""
        return any(problem.may_pass for problem in self.problems)


class PolicyError(SettingsError):
    """A policy that isn't used."""


class ConfigError(SettingsError):
    """A guardtrace.yaml that isn't used."""
