"""How far a step is and what it has cost: a bar a model on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich import progress
from rich.console import Console


class Progress:
    """To be opened by ``with``. Without a terminal nothing is shown."""

    def __init__(self) -> None:
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[tokens]:,} tokens  cost {task.fields[cost]:.2f}", markup=False),
            progress.TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bars = progress.Progress(*columns, console=console, disable=not sys.stderr.isatty())
        self._tasks: dict[str, progress.TaskID] = {}
        self._tokens: dict[str, int] = {}
        self._cost: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bars.stop()

    def expect(self, name: str, total: int) -> None:
        """A bar for a model that is asked ``total`` things."""
        self._tasks[name] = self._bars.add_task(name, total=total, tokens=0, cost=0.0)

    def advance(self, name: str) -> None:
        """One is done."""
        self._bars.advance(self._tasks[name])

    def spend(self, name: str, tokens: int, cost: float) -> None:
        """Tokens of both kinds, and what they cost in the price's currency."""
        self._tokens[name] = self._tokens.get(name, 0) + tokens
        self._cost[name] = self._cost.get(name, 0.0) + cost
        self._bars.update(self._tasks[name], tokens=self._tokens[name], cost=self._cost[name])
