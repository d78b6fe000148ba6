"""What of a conversation and of a growing trace stands in a prompt when not all of it fits.

Never left out: the newest user turn and what follows it, images, and text that no verdict covers yet. Where these are
more than an auditor takes, the request is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from guardtrace_proxy.auditor.prompt import QueryImage, Trace, Turn, query_text
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, FailureKind
from guardtrace_proxy.images.fitting import MAX_STRETCH, is_too_stretched

GAP = "[…] "
EARLIER_TURNS = "[earlier turns left out]\n"
T = TypeVar("T")


def check_shapes(images: Sequence[QueryImage]) -> None:
    """Raise DoesNotFit where an image has a shape that no auditor takes."""
    if any(is_too_stretched(*image.pixels.size) for image in images):
        raise DoesNotFit("messages", f"an image is more than {MAX_STRETCH} times as long as wide")


def fit_turns(turns: Sequence[Turn], fits: Callable[[str], bool]) -> str:
    """The conversation's text, without its oldest whole turns where it is too long.

    Raises:
        DoesNotFit: the newest user turn with what follows it is too long by itself.
    """
    whole = query_text(turns)
    if fits(whole):
        return whole
    fewest, most = 1, _newest(turns)  # how many turns are left out, by bisection
    if not turns or most < 1 or not fits(_without_oldest(turns, most)):
        raise too_long()
    while fewest < most:
        middle = (fewest + most) // 2
        if fits(_without_oldest(turns, middle)):
            most = middle
        else:
            fewest = middle + 1
    return _without_oldest(turns, most)


def newest_turns(turns: Sequence[Turn]) -> str:
    """The shortest that a conversation's text becomes: the newest user turn with what follows it."""
    newest = _newest(turns)
    return _without_oldest(turns, newest) if newest else query_text(turns)


def too_long() -> DoesNotFit:
    """Where not even the newest turns of a conversation fit."""
    return DoesNotFit("messages", "the newest user message is longer than the auditor's context: shorten it")


def _newest(turns: Sequence[Turn]) -> int:
    newest = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)
    return max(newest, 0)


def _without_oldest(turns: Sequence[Turn], count: int) -> str:
    return EARLIER_TURNS + query_text(turns[count:])


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
