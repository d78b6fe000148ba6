"""All items before one judge: once each, in order, and safe to interrupt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import pytest

from guardtrace_trainer.endpoints import EndpointFailure
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import GuardVerdict, UnreadableVerdict
from guardtrace_trainer.evaluation.judged import EvaluationStopped, Judged, Outcome
from guardtrace_trainer.evaluation.judging import HOPELESS, GuardJudge, judge_all
from guardtrace_trainer.steps import Journal

FINE, FAILED = Outcome(level=0.0), Outcome(failure="refused", why="HTTP 401: no key")


def item(number: int) -> Item:
    return Item(
        id=str(number),
        subset="s",
        kind="safe",
        category="other",
        question="Q?",
        image=None,
        thinking=f"{number}",
        answer="",
        level=0.0,
    )


class Teller:
    """Says of an item what a function says, later ones sooner; counts how many it is asked at once."""

    def __init__(self, says: Callable[[int], Outcome]) -> None:
        self.says = says
        self.asked: list[int] = []
        self.most = self._now = 0

    async def outcomes(self, item: Item) -> Mapping[str, Outcome]:
        number = int(item.id)
        self.asked.append(number)
        self._now += 1
        self.most = max(self.most, self._now)
        await anyio.sleep(0.003 / (1 + number))
        self._now -= 1
        return {"annotate": self.says(number)}


def run(teller: Teller, count: int, path: Path | None = None, concurrency: int = 3) -> list[Judged]:
    async def work() -> list[Judged]:
        items = [item(number) for number in range(count)]
        if path is None:
            return await judge_all(items, teller, concurrency=concurrency)
        with Journal(path, Judged) as journal:
            return await judge_all(items, teller, concurrency=concurrency, journal=journal)

    return anyio.run(work)


def test_rows_come_in_the_items_order_however_many_run_at_once() -> None:
    teller = Teller(lambda number: Outcome(level=0.5 if number % 2 else 0.0))
    rows = run(teller, 20)
    assert [row.id for row in rows] == [f"s/{number}" for number in range(20)]
    assert [row.outcomes["annotate"].level for row in rows] == [0.0, 0.5] * 10
    assert sorted(teller.asked) == list(range(20))
    assert teller.most == 3


def test_what_stands_in_the_journal_is_not_asked_again(tmp_path: Path) -> None:
    def breaks_at_twelve(number: int) -> Outcome:
        if number == 12:
            raise EvaluationStopped("the server is away")
        return FINE

    first = Teller(breaks_at_twelve)
    with pytest.raises(EvaluationStopped, match="the server is away"):
        run(first, 20, tmp_path / "journal")
    second = Teller(lambda number: FINE)
    assert len(run(second, 20, tmp_path / "journal")) == 20
    assert 12 in second.asked
    assert set(first.asked) & set(second.asked) == {12}
    assert set(first.asked) | set(second.asked) == set(range(20))


def test_failures_among_verdicts_are_kept(tmp_path: Path) -> None:
    rows = run(Teller(lambda number: FINE if number == 5 else FAILED), 12, tmp_path / "journal", concurrency=1)
    assert sum(row.outcomes["annotate"].failure is not None for row in rows) == 11
    assert run(Teller(lambda number: FINE), 12, tmp_path / "journal") == rows


@pytest.mark.parametrize("count", [3, 40])
def test_without_any_verdict_it_stops_and_keeps_nothing(tmp_path: Path, count: int) -> None:
    teller = Teller(lambda number: FAILED)
    with pytest.raises(EvaluationStopped, match=r"no verdict on any of \d items; .* refused: HTTP 401: no key"):
        run(teller, count, tmp_path / "journal", concurrency=1)
    assert len(teller.asked) == min(count, HOPELESS)
    assert (tmp_path / "journal").read_bytes() == b""
    assert len(run(Teller(lambda number: FINE), count, tmp_path / "journal")) == count


class Guard:
    """Says or raises what it is given."""

    sees_images = True
    levels = False

    def __init__(self, said: GuardVerdict | Exception) -> None:
        self.said = said

    async def judge(self, item: Item) -> GuardVerdict:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def ask(said: GuardVerdict | Exception, replies: bool = False) -> Outcome:
    return anyio.run(GuardJudge(Guard(said), replies=replies).outcomes, item(1))["guard"]


def test_a_guards_words() -> None:
    outcome = ask(GuardVerdict(True, scores={"S9": 1.0}, raw="unsafe\nS9"))
    assert (outcome.unsafe, outcome.level, outcome.scores, outcome.said) == (True, None, {"S9": 1.0}, None)
    assert ask(GuardVerdict(False, raw="safe"), replies=True).said == "safe"
    assert ask(UnreadableVerdict("no result")) == Outcome(failure="unreadable", why="no result")
    refused = EndpointFailure("g: HTTP 400: too long", temporary=False, status=400)
    assert ask(refused) == Outcome(failure="refused", why="g: HTTP 400: too long")
    with pytest.raises(EvaluationStopped, match=r"g: HTTP 503\. See to it and run the same command again"):
        ask(EndpointFailure("g: HTTP 503", temporary=True, status=503))
    with pytest.raises(EvaluationStopped, match=r"g: HTTP 401\. See to it and run the same command again"):
        ask(EndpointFailure("g: HTTP 401", temporary=False, status=401))
