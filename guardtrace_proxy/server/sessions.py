"""The auditor's sessions of one reply: one of each query, and of more choices as these turn up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio

from guardtrace_proxy.auditor.cascade import within
from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, DoesNotFit, Session, others_are_broken
from guardtrace_proxy.images import HeldImages
from guardtrace_proxy.server.about import About, of_choice
from guardtrace_proxy.server.continued import ContinuedSession
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.unopened import UnopenedSession
from guardtrace_proxy.wire.prefill import Opening
from guardtrace_proxy.wire.request import Request

OpenSession = Callable[[int], Awaitable[Session]]
"""Opens the session of a choice, which whoever asked for it closes."""


def opener(
    auditor: Auditor, request: Request, images: HeldImages, about: About, opening: Opening | None
) -> OpenSession:
    """Opens sessions of this request's choices; ``opening`` is how its ``prefill`` begins the reply. With the last of
    those that were asked for it lets the images go."""
    unopened = set(range(request.choices))

    async def open_session(choice: int) -> Session:
        turns = [Turn(*turn) for turn in of_choice(request.queries, choice, request.n)]
        query = Query(turns, await images.decoded(), stream=about.request_id, tenant=about.tenant)
        with others_are_broken():
            session = await auditor.open(query)
        if request.prefill is not None and opening is not None:
            try:
                session = ContinuedSession(session, opening, request.prefill.where)
            except DoesNotFit:
                await session.aclose()
                raise
        unopened.discard(choice)
        if not unopened:
            images.let_go()
        return session

    return open_session


@asynccontextmanager
async def sessions_of(
    request: Request, open_session: OpenSession, timeout_ms: int
) -> AsyncIterator[dict[int, Session]]:
    """One session of each query, by its first choice, so that what doesn't fit is told before anything is sent on. All
    that are in it at the end are closed, whatever happened."""
    sessions: dict[int, Session] = {}
    try:
        for choice in range(0, request.choices, request.n):
            sessions[choice] = await _first_session(open_session, choice, timeout_ms)
        yield sessions
    finally:
        with anyio.CancelScope(shield=True):
            for session in sessions.values():
                await session.aclose()


async def _first_session(open_session: OpenSession, choice: int, timeout_ms: int) -> Session:
    try:
        with within(timeout_ms, anyio.current_time()):
            return await open_session(choice)
    except DoesNotFit as error:
        raise ApiError(400, str(error), param=error.field, code="does_not_fit_auditor") from None
    except AuditorFailure:
        return UnopenedSession(partial(open_session, choice))
