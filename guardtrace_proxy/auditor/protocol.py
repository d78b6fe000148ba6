"""What an auditor is to the rest: opened on a query, asked about a growing trace, it answers with verdicts.

Correctness never depends on what a session remembers: each call carries the whole partial trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Protocol, runtime_checkable

from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.policy.levels import Verdict


class Depth(str, Enum):
    """How thoroughly one audit looks."""

    LABEL = "label"
    """One prefill; the three probabilities are read where the judgment stands, without an analysis."""
    ANNOTATE = "annotate"
    """The auditor writes its analysis, then its judgment."""


class FailureKind(str, Enum):
    """Why an audit gave no verdict. The values are what metrics and logs carry."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    """No connection, or one that broke off."""
    REFUSED = "refused"
    """The auditor's server answered with another HTTP error than those of ``OVERLOADED`` and ``GATEWAY``, or it drops
    text of long prompts."""
    UNREADABLE = "unreadable"
    """A reply without one of the three judgments."""
    UNSURE = "unsure"
    """Label reads only: the three labels together carry less than half of the probability."""
    UNSEEN = "unseen"
    """The auditor's server answered without having looked at the request's images."""
    OVERLOADED = "overloaded"
    """Too many audits wait already."""
    GATEWAY = "gateway"
    """What stands before the auditor's server says that it is gone or silent: it may come as late as a timeout, and may
    be the request's doing."""
    OUTGROWN = "outgrown"
    """The text that no verdict covers yet is more than one audit takes (see ``Session.capacity``)."""
    CIRCUIT_OPEN = "circuit_open"
    """Not asked, since it failed again and again just now."""
    CANCELLED = "cancelled"
    """The auditor was closed while the audit ran."""
    BROKEN = "broken"
    """The auditor itself raised: out of memory, a lost device."""


class AuditorError(Exception):
    """The root of everything that an auditor raises on purpose."""


class AuditorFailure(AuditorError):
    """An audit that gave no verdict. What follows is the policy's choice; the message holds no user text."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class DoesNotFit(AuditorError):
    """The request itself is more than the auditor takes: a 400, with the request's ``field``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class AuditorSettingsError(AuditorError):
    """The auditor can't be used as it is configured; raised at start only. The message says what to do."""


@contextmanager
def others_are_broken() -> Iterator[None]:
    """Makes an AuditorFailure of what an auditor shouldn't raise; of its text, which may quote the user, nothing is
    told."""
    try:
        yield
    except (AuditorFailure, DoesNotFit):
        raise
    except Exception as error:
        raise AuditorFailure(FailureKind.BROKEN, f"the auditor raised {type(error).__name__}") from error


class Session(Protocol):
    """One query under audit. Its calls must not overlap."""

    capacity: int
    """UTF-8 bytes of text that no verdict covers yet, which one audit takes; more may be OUTGROWN. Without a tokenizer
    at hand, text that is dense and grows by quoting may be so too."""

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        """Judge the whole partial trace. Cancelling the call frees what it holds.

        Raises:
            AuditorFailure: there is no verdict; the session can still be used.
        """
        ...

    async def aclose(self) -> None:
        """Free what the session holds."""
        ...


class Auditor(Protocol):
    """A guard model behind one of the backends."""

    name: str
    """What logs and headers call it."""
    escalate_at: float | None
    """The label risk from which on its calibration lets a cascade annotate; None without one. Known after ``start``."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator must know; after ``start``, and after the first audits of a server that was away."""
        ...

    async def start(self) -> None:
        """Load or connect.

        Raises:
            AuditorSettingsError: it can't work as configured. A remote server that is down is no such error.
        """
        ...

    async def open(self, query: Query) -> Session:
        """Begin the audit of one reply to ``query``.

        Raises:
            DoesNotFit: query or images are more than the auditor takes.
            AuditorFailure: the auditor broke down while it prepared the query.
        """
        ...

    async def aclose(self) -> None:
        """Stop and free everything; after a ``start`` that raised as well."""
        ...


MEASURES = {
    "kv_bytes": "Keys and values of running replies that are kept.",
    "kv_bytes_limit": "auditor.kv_cache_bytes.",
    "kv_dropped_total": "Replies whose keys and values went to make room, and are read again.",
    "replicas": "Servers of the auditor and its fallback, where there are several.",
    "replicas_left_out": "Of these, how many fell and haven't answered since.",
}
"""What an auditor may know of itself, by the names that metrics have for it."""


@runtime_checkable
class Measured(Protocol):
    """An auditor that can tell how it is doing."""

    def measures(self) -> Mapping[str, float]:
        """Some of ``MEASURES``, now."""
        ...
