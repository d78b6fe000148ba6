"""What is known of a reply before it comes: whose it is, and who judges it by what."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PureWindowsPath
from typing import TypeVar

from guardtrace_proxy.wire.request import Turns

Each = TypeVar("Each")


def of_choice(queries: Sequence[Each], choice: int, n: int) -> Each:
    """The query that a choice replies to. Of several each has ``n`` choices; one that nobody asked for is judged as the
    last one's."""
    return queries[min(choice // n, len(queries) - 1)]


@cache
def shown_name(model: str) -> str:
    """What clients are told of an auditor: of a folder its own name alone, since its path is the operator's."""
    is_folder = model.startswith(("/", ".", "~")) or "\\" in model or os.path.isdir(model)
    return PureWindowsPath(model).name if is_folder else model


@dataclass(frozen=True, slots=True)
class About:
    """For records and telemetry. No user text but ``queries`` (of several each has ``n`` choices) and what the client
    calls the ``model``."""

    request_id: str
    trace_id: str | None
    tenant: str
    key: str | None
    upstream: str
    route: str
    model: str
    stream: bool
    images: int
    policy: str
    policy_sha256: str
    auditor: str
    checkpoint: str | None
    queries: tuple[Turns, ...]
    n: int

    def turns(self, choice: int) -> Turns:
        """The conversation that a choice replies to."""
        return of_choice(self.queries, choice, self.n)
