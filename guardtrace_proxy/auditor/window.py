"""What of a conversation and of a growing trace stands in a prompt when not all of it fits.

Never left out: the newest user turn and what follows it, images, and text that no verdict covers yet. Where these are
more than an auditor takes, the request is refused.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

from guardtrace_proxy.auditor.prompt import QueryImage, Trace, Turn, joined, quoted
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, FailureKind
from guardtrace_proxy.auditor.quoting import least_unescaped
from guardtrace_proxy.images.fitting import MAX_STRETCH, is_too_stretched

GAP = "[…] "
EARLIER_TURNS = "[earlier turns left out]\n"
BYTES_A_CHARACTER = 2 / 3
"""At least, in UTF-8 and any normal form: of three characters (Ǖ as a U and two marks) NFC makes one of two bytes."""
MOST_SHORTENED = 9
"""Characters of a turn that are one byte in a prompt, at most: such three as their codes (``\\u0055``) are 18."""
T = TypeVar("T")


def check_shapes(images: Sequence[QueryImage]) -> None:
    """Raise DoesNotFit where an image has a shape that no auditor takes."""
    if any(is_too_stretched(*image.pixels.size) for image in images):
        raise DoesNotFit("messages", f"an image is more than {MAX_STRETCH} times as long as wide")


class Conversation:
    """The turns before the auditor, each quoted once, and only if there may be room for it: a client can send megabytes
    of what takes long to quote."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._quoted: dict[int, Turn] = {}
        self._newest = _newest(turns)

    def fit(self, fits: Callable[[str], bool], most_bytes: float = math.inf) -> str:
        """Its text, without its oldest whole turns where it is too long. What is longer than ``most_bytes`` in UTF-8,
        in its shorter normal form, never fits.

        Raises:
            DoesNotFit: the newest user turn with what follows it is too long by itself.
        """
        first = self._first_within(most_bytes)
        if first == 0 and fits(whole := self._without_oldest(0)):
            return whole

        def has_room(left_out: int) -> bool:
            return left_out >= first and fits(self._without_oldest(left_out))

        fewest, most = 1, self._newest  # how many turns are left out, by bisection
        if not self._turns or most < 1 or not has_room(most):
            raise too_long()
        while fewest < most:
            middle = (fewest + most) // 2
            if has_room(middle):
                most = middle
            else:
                fewest = middle + 1
        return self._without_oldest(most)

    @property
    def newest(self) -> str:
        """The shortest that its text becomes: the newest user turn with what follows it."""
        return self._without_oldest(self._newest)

    def _first_within(self, most_bytes: float) -> int:
        """The first turn from which on all may be within so many bytes."""
        size = 0
        for index in reversed(range(len(self._turns))):
            text = self._turns[index].text
            if size + len(text) / MOST_SHORTENED > most_bytes:
                return index + 1
            if size + least_unescaped(text) * BYTES_A_CHARACTER > most_bytes:
                return index + 1
            size += _fewest_bytes(self._turn(index).text)
            if size > most_bytes:
                return index + 1
        return 0

    def _turn(self, index: int) -> Turn:
        if index not in self._quoted:
            self._quoted[index] = quoted(self._turns[index])
        return self._quoted[index]

    def _without_oldest(self, count: int) -> str:
        text = joined([self._turn(index) for index in range(count, len(self._turns))])
        return EARLIER_TURNS + text if count else text


def _fewest_bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    return min(len(form.encode("utf-8", "surrogatepass")) for form in (text, unicodedata.normalize("NFC", text)))


def fit_turns(turns: Sequence[Turn], fits: Callable[[str], bool], most_bytes: float = math.inf) -> str:
    """The conversation's text, without its oldest whole turns where it is too long. Raises DoesNotFit."""
    return Conversation(turns).fit(fits, most_bytes)


def too_long() -> DoesNotFit:
    """Where not even the newest turns of a conversation fit."""
    return DoesNotFit("messages", "the newest user message is longer than the auditor's context: shorten it")


def _newest(turns: Sequence[Turn]) -> int:
    newest = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)
    return max(newest, 0)


class Window:
    """Slides over the judged part of one session's trace.

    Each time the prompt is too long, half of what is still shown is left out (as far as it is judged),
    thinking before answer. So the cut stays where it is for many audits, whose prompts then share their
    beginnings.
    """

    def __init__(self) -> None:
        self._thinking = 0
        self._answer = 0

    def place(self, trace: Trace, build: Callable[[str, str], T | None]) -> T:
        """What ``build`` makes of the thinking and answer shown; it returns None where they don't fit.

        Raises:
            AuditorFailure: even without any judged text it doesn't fit.
        """
        self._thinking = min(self._thinking, trace.judged_thinking)
        self._answer = min(self._answer, trace.judged_answer)
        while True:
            built = build(_after(trace.thinking, self._thinking), _after(trace.answer, self._answer))
            if built is not None:
                return built
            if not self._slide(trace):
                raise AuditorFailure(
                    FailureKind.OUTGROWN, "the text to be judged at once is longer than the auditor's context"
                )

    def _slide(self, trace: Trace) -> bool:
        if self._thinking < trace.judged_thinking:
            self._thinking = _halfway(self._thinking, len(trace.thinking), trace.judged_thinking)
            return True
        if self._answer < trace.judged_answer:
            self._answer = _halfway(self._answer, len(trace.answer), trace.judged_answer)
            return True
        return False


def _halfway(cut: int, length: int, judged: int) -> int:
    return min(judged, cut + (length - cut + 1) // 2)


def _after(text: str, cut: int) -> str:
    return GAP + text[cut:] if cut else text
