"""Many jobs, a few at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

Job = TypeVar("Job")


async def do_each(jobs: Iterable[Job], do: Callable[[Job], Awaitable[None]], at_once: int) -> None:
    """Do all jobs, ``at_once`` at a time. The first that breaks ends the others, and what it raised is raised as it
    is, not in a group."""
    waiting = iter(jobs)
    broken: list[Exception] = []

    async def work() -> None:
        for job in waiting:
            try:
                await do(job)
            except Exception as error:
                broken.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(work)
    if broken:
        raise broken[0]
