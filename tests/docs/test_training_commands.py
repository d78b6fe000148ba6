"""Every command of the trainer that its pages show is one, with the options that it is given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from guardtrace_trainer.cli import app
from tests.docs.pages import FENCE, PAGES, ROOT, blocks, commands

NAME = "guardtrace-train"
PROGRAM = get_command(app)
TRAINING = [page for page in PAGES if page.name.startswith("training")]
SHOWN = [
    (block.where, command)
    for block in blocks("bash", "sh", "shell", "console", "text")
    for command in commands(block.text)
    if command.startswith(f"{NAME} ")
]
INLINE = re.compile(rf"`({NAME} [^`]+)`")
OPTION = re.compile(r"`(--[a-z][a-z-]*)")


def mentioned() -> Iterator[tuple[str, str]]:
    """Commands in running text, which may leave arguments out."""
    for page in PAGES:
        for found in INLINE.finditer(FENCE.sub("", page.read_text("utf-8"))):
            yield str(page.relative_to(ROOT)), found[1]


def leaf(command: str) -> tuple[Any, list[str]]:
    """The command that is meant, and what it is given."""
    words = shlex.split(command, comments=True)[1:]
    found: Any = PROGRAM
    while hasattr(found, "commands"):
        assert words, f"{command}: expected one of {', '.join(found.commands)}"
        name = words.pop(0)
        assert name in found.commands, f"{command}: there is no {name}, only {', '.join(found.commands)}"
        found = found.commands[name]
    return found, words


def options(command: Any) -> set[str]:
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)}


def every(command: Any) -> Iterator[Any]:
    """All commands below a group: its class is typer's or click's, as their versions go."""
    if hasattr(command, "commands"):
        for inner in command.commands.values():
            yield from every(inner)
    else:
        yield command


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.touch()
    else:
        path.mkdir(exist_ok=True)


def test_the_pages_show_commands() -> None:
    assert len(TRAINING) >= 6
    assert len(SHOWN) >= 20


@pytest.mark.parametrize(("where", "command"), SHOWN, ids=[f"{where} {command}" for where, command in SHOWN])
def test_a_shown_command_is_read(where: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, words = leaf(command)
    monkeypatch.chdir(tmp_path)
    for word in words:
        if not word.startswith("-") and "://" not in word:
            make(Path(word))  # what the command reads must be there
    with found.make_context(command, words):  # raises UsageError where the program would
        pass


@pytest.mark.parametrize(("where", "command"), [*mentioned()], ids=[f"{where} {said}" for where, said in mentioned()])
def test_a_mentioned_command_has_its_options(where: str, command: str) -> None:
    found, words = leaf(command)
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options(found)


@pytest.mark.parametrize("page", TRAINING, ids=lambda page: page.name)
def test_a_mentioned_option_is_some_commands(page: Path) -> None:
    known = {option for command in every(PROGRAM) for option in options(command)}
    text = FENCE.sub("", page.read_text("utf-8"))
    assert set(OPTION.findall(text)) <= known
