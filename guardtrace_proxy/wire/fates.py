"""What becomes of a choice in an event that leaves otherwise than it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Kept:
    """A choice that stays: one new text for each of its spans, or None where nothing changed.

    ``reasoning`` is (field, text): thinking that leaves there and no longer where it came.
    """

    texts: Sequence[str] | None = None
    reasoning: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A choice that ends here by policy, with the message its reader gets."""

    message: str
    shape: Literal["content_filter", "refusal", "error"]
    role: bool = True
    """Whether the first delta must still carry the role."""
    close: str | None = None
    """The closing tag of the inline thinking block that stands open for the client, if one does."""
    note: Mapping[str, Any] | None = None
    """The ``guardtrace`` object, or None where the policy doesn't expose it."""
    unjudged: bool = False
    """No verdict asked for it: the auditor failed."""

    @property
    def error(self) -> tuple[str, str, str]:
        """Message, type and code, where the shape is ``error``."""
        if self.unjudged:
            return self.message, "server_error", "auditor_failure"
        return self.message, "content_filter", "content_filter"


Fate = Kept | Cut
