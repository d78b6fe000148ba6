"""Text of models and strangers, made safe to print: it must not drive the terminal, nor pass for the screen's own."""

from __future__ import annotations

import time
import unicodedata
from typing import NoReturn

import typer

PROGRESS_SECONDS = 5.0


def log(line: str) -> None:
    """A line on how things go on, with the time, on stderr."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {printable(line)}", err=True)


def fail(message: object) -> NoReturn:
    """End the command with what went wrong, as one message on stderr.

    Raises:
        typer.Exit: always, with status 1.
    """
    typer.secho(printable(f"guardtrace-train: {message}"), fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


class NowAndThen:
    """Says how far something is, every few seconds and at its end: a progress that needs no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS or done == total:
            self._said = now
            log(f"{done} of {total} {self._what}")


def printable(text: str) -> str:
    """The text with every control, format and unassigned character but the line break as a visible escape.

    Escape sequences, carriage returns, bidirectional overrides and invisible characters show as ``\\x1b``, ``\\r``,
    ``\\u202e``; a tab as four spaces. Line breaks of other kinds than ``\\n`` are escaped, too.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(map(_shown, text))


def quoted(text: str, mark: str = "  | ") -> str:
    """:func:`printable`, with ``mark`` before each line."""
    return "\n".join(mark + line for line in printable(text).split("\n"))


def _shown(character: str) -> str:
    if character == "\n":
        return character
    if character == "\t":
        return "    "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character
