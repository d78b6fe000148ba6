"""Nothing is cut off in silence: a row longer than the limit is an error, or loses the middle of its thinking.

TRL's own truncation cuts at the right, where the answer and the reply stand, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from guardtrace_proxy.auditor.window import GAP
from guardtrace_trainer.rows import Trace, row_as
from guardtrace_trainer.stages.encode import Example
from guardtrace_trainer.stages.settings import StageError

AnyTrace = TypeVar("AnyTrace", bound=Trace)
Encode = Callable[[AnyTrace], Example]
LISTED = 20


class TooLong(StageError):
    """Rows are longer than the limit; ``ids`` are all of them."""

    def __init__(self, examples: Sequence[tuple[str, int]], limit: int, remedy: str) -> None:
        self.ids = [row for row, _ in examples]
        self._examples = examples
        self._limit = limit
        self._remedy = remedy
        super().__init__(self._message(lambda row: row))

    def at(self, place: Callable[[str], str]) -> StageError:
        """The same error, with the place of each row that it lists."""
        return StageError(self._message(place))

    def _message(self, place: Callable[[str], str]) -> str:
        listed = ", ".join(f"{place(row)} ({length})" for row, length in self._examples[:LISTED])
        more = f" and {len(self._examples) - LISTED} more" if len(self._examples) > LISTED else ""
        return (
            f"{len(self._examples)} rows are longer than max_length, {self._limit} tokens of prompt, images and reply: "
            f"{listed}{more}. {self._remedy}"
        )


def encode_all(rows: Sequence[AnyTrace], encode: Encode[AnyTrace], limit: int, *, drop_middle: bool) -> list[Example]:
    """Every row's example, none longer than ``limit`` tokens.

    Raises:
        TooLong: some are; with ``drop_middle``, without any of their thinking.
    """
    examples: list[Example] = []
    over: list[tuple[str, int]] = []
    for row in rows:
        example = encode(row)
        if example.length > limit and drop_middle:
            example = without_middle(row, encode, limit)
        if example.length > limit:
            over.append((row.id, example.length))
        examples.append(example)
    if over:
        remedy = (
            "Take them out, or raise max_length: what is left of them isn't thinking"
            if drop_middle
            else "Take them out, raise max_length, or set long_traces: drop_middle"
        )
        raise TooLong(over, limit, remedy)
    return examples


def without_middle(row: AnyTrace, encode: Encode[AnyTrace], limit: int) -> Example:
    """The example of a row with as much of its thinking's beginning and end as fits; all of the rest stays.

    It may still be over ``limit`` where that is so even without any thinking.
    """

    def shortened(kept: int) -> Example:
        head, tail = (kept + 1) // 2, kept // 2
        text = row.thinking[:head] + GAP + row.thinking[len(row.thinking) - tail :]
        return encode(row_as(row, type(row), thinking=text))

    fits, most = 0, len(row.thinking) - 1  # characters kept, by bisection
    best = shortened(0)
    while fits < most:
        middle = (fits + most + 1) // 2
        example = shortened(middle)
        if example.length <= limit:
            fits, best = middle, example
        else:
            most = middle - 1
    return best
