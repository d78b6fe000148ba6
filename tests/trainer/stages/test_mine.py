"""Mining with the real auditor and an oracle behind real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from guardtrace_proxy.auditor import make_auditor
from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.rows import Pair, RowError, read_rows, write_rows
from guardtrace_trainer.stages import mine as mining
from guardtrace_trainer.stages.conflicts import Answer, Conflict, Unjudged, decide
from guardtrace_trainer.stages.mine import run_mine
from guardtrace_trainer.stages.settings import MineSettings, StageError
from guardtrace_trainer.steps import Manifest, StepError
from tests.trainer.stages.corpora import annotation, draw_images, fields


class Oracle:
    """Sides with the review whose level the trace's question names; odd where the question asks for it."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.fails: set[str] = set()
        self.status = 500
        self.ends_after: int | None = None
        """So many answers are paid for; from then on the credit is gone."""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        content = body["messages"][1]["content"]
        text = content if isinstance(content, str) else content[1]["text"]
        question = next(line for line in text.splitlines() if line.startswith("Current Task Query: "))
        reviews = [json.loads(line.partition(": ")[2]) for line in text.splitlines() if line.startswith("Reviewer ")]
        name = question.split()[4].rstrip(":")
        if self.ends_after is not None and self.asked.total() >= self.ends_after:
            return web.json_response({"error": {"message": "no credit left"}}, status=self.status)
        if name in self.fails:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        self.asked[name] += 1
        if "[always first]" in question:
            said = '{"choice": 1}'
        elif "[mute]" in question:
            said = "Both have a point."
        else:
            right = question.rsplit("[", 1)[1].rstrip("]")
            said = json.dumps({"choice": 1 + [review["judgment"] for review in reviews].index(right)})
        return web.json_response(
            {
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 5},
            }
        )


@pytest.fixture
def oracle() -> Iterator[tuple[Oracle, MineSettings]]:
    """An oracle that listens, and settings that name it."""
    scripted = Oracle()
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", scripted.answer)
    server = TestServer(app, loop=loop)
    loop.run_until_complete(server.start_server())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    endpoint = Endpoint(
        name="oracle", base_url=str(server.make_url("/v1")), model="o", stream=False, attempts=1, price={"prompt": 1}
    )
    yield scripted, MineSettings(oracle=endpoint, annotate_max_tokens=128)
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def model_level() -> float:
    """What the embedded auditor says of the traces below, all of which are about bread."""
    auditor = make_auditor("transformers", model="builtin:nano", annotate_max_tokens=128)

    async def judged() -> float:
        await auditor.start()
        [level] = [(await mining._judged(auditor, pair("0", 0.0, 1.0), Path())).annotation.level]
        await auditor.aclose()
        return level

    return anyio.run(judged)


def pair(number: str, chosen: float, rejected: float, mark: str = "", **more: Any) -> Pair:
    made = {**fields(0, 0.0), "id": number, "question": f"Trace {number}: how do I bake bread? {mark}", **more}
    return Pair(**made, agreement="2:1", chosen=annotation(chosen), rejected=annotation(rejected, "judge-b"))


@pytest.fixture
def corpus_of_pairs(tmp_path, model_level) -> Path:
    """One pair the model agrees on, and conflicts of each kind."""
    other, third = {0.0, 0.5, 1.0} - {model_level}
    spelled = {"model": f"[{model_level:g}]", "jury": f"[{other:g}]"}
    draw_images(tmp_path)
    rows = [
        pair("agreed", model_level, other),
        pair("wrong", other, third, spelled["jury"]),
        pair("pictured", other, third, spelled["jury"], image="images/a.png", variant="aligned"),
        pair("right", other, model_level, spelled["model"]),
        pair("wavering", other, third, "[always first]"),
        pair("mute", other, third, "[mute]"),
        pair("endless", other, third, thinking="And so on. " * 2000),
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    return tmp_path


def run(settings: MineSettings, corpus: Path, log=lambda _: None, again: bool = False) -> Path:
    data, out = [corpus / "pairs.jsonl"], corpus / "mined"
    return run_mine(settings, base="builtin:nano", data=data, out=out, seed=0, log=log, again=again).parent


def ids(path: Path, kind: type = Pair) -> list[str]:
    return [row.id for row in read_rows(path, kind)]


def test_conflicts_are_decided_by_the_oracle(oracle, corpus_of_pairs, model_level):
    scripted, settings = oracle
    out = run(settings, corpus_of_pairs)
    assert ids(out / "mined.jsonl") == ["wrong", "pictured"]
    assert ids(out / "dropped.jsonl") == ["right"]
    assert ids(out / "undecided.jsonl") == ["wavering", "mute"]
    [unjudged] = read_rows(out / "unjudged.jsonl", Unjudged)
    assert unjudged.id == "endless"
    assert unjudged.failure.startswith("outgrown: ")
    before = {row.id: row for row in read_rows(corpus_of_pairs / "pairs.jsonl", Pair)}
    for row in read_rows(out / "mined.jsonl", Pair):
        assert row.chosen == before[row.id].chosen
        assert row.origin == "mined"
        assert row.rejected.judge == "model"
        assert row.rejected.level == model_level
        assert "goal is" in row.rejected.analysis  # the embedded auditor's own words
    assert scripted.asked == dict.fromkeys(("wrong", "pictured", "right", "wavering", "mute"), 2)
    counts = msgspec.json.decode((out / "mine.manifest.json").read_bytes(), type=Manifest).counts
    assert counts["conflicts"] == 5
    assert counts["decisions"] == {"model wrong": 2, "model right": 1, "undecided": 2}
    assert counts["unjudged"] == {"outgrown": 1}
    assert counts["oracle_prompt_tokens"] == 1000
    assert counts["oracle_cost"] == pytest.approx(0.001)


def test_what_the_model_judges_rightly_is_replayed_where_it_is_asked_for(oracle, corpus_of_pairs, model_level):
    _, settings = oracle
    out = run(settings, corpus_of_pairs)
    assert ids(out / "replay.jsonl") == []
    out = run(settings.model_copy(update={"replay": 0.5}), corpus_of_pairs, again=True)
    assert len(ids(out / "mined.jsonl")) == 2
    assert ids(out / "replay.jsonl") == (["agreed"] if model_level == 0 else [])


def test_pairs_of_several_files_are_mined(oracle, corpus_of_pairs, model_level):
    _, settings = oracle
    first, second = corpus_of_pairs / "pairs.jsonl", corpus_of_pairs / "pair_prefixes.jsonl"
    known = {row.id: row for row in read_rows(first, Pair)}
    write_rows(first, [known["agreed"], known["right"]])
    write_rows(second, [known["wrong"], known["pictured"]])
    out = corpus_of_pairs / "mined"

    def mined(*data: Path, corpus: Path | None = None) -> Path:
        return run_mine(
            settings, base="builtin:nano", data=data, out=out, seed=0, log=lambda _: None, corpus=corpus, again=True
        )

    assert ids(mined(first, second)) == ["wrong", "pictured"]
    assert ids(out / "dropped.jsonl") == ["right"]
    elsewhere = corpus_of_pairs / "more" / "pairs.jsonl"
    write_rows(elsewhere, [known["wrong"]])
    with pytest.raises(RowError, match=r"pairs\.jsonl, line 1, row wrong stands in two of"):
        mined(second, elsewhere, corpus=corpus_of_pairs)
    with pytest.raises(StageError, match="name the folder of their images, corpus"):
        mined(first, elsewhere)
    assert ids(mined(first, elsewhere, corpus=corpus_of_pairs)) == ["wrong"]


def test_each_conflict_can_be_read_by_a_person(oracle, corpus_of_pairs, model_level):
    _, settings = oracle
    out = run(settings, corpus_of_pairs)
    lines = {row.id: row for row in read_rows(out / "oracle.jsonl", Conflict)}
    assert list(lines) == ["wrong", "pictured", "right", "wavering", "mute"]
    wrong = lines["wrong"]
    assert (wrong.chosen_first.order, wrong.model_first.order) == ("chosen first", "model first")
    assert [json.loads(answer.raw)["choice"] for answer in (wrong.chosen_first, wrong.model_first)] == [1, 2]
    assert wrong.model.level == model_level
    assert wrong.question.startswith("Trace wrong")
    wavering = lines["wavering"]
    assert (wavering.chosen_first.sides_with, wavering.model_first.sides_with) == ("chosen", "model")
    assert lines["mute"].chosen_first.raw == "Both have a point."
    assert lines["mute"].chosen_first.problem


def test_no_question_is_paid_twice(oracle, corpus_of_pairs, monkeypatch):
    scripted, settings = oracle
    scripted.fails = {"right", "mute"}
    with pytest.raises(StageError, match=r"4 of 10 questions got no answer from the oracle.*HTTP 500"):
        run(settings, corpus_of_pairs)
    assert not (corpus_of_pairs / "mined" / "mined.jsonl").exists()
    scripted.fails = set()
    monkeypatch.setattr(mining, "make_auditor", None)  # nothing is judged again either
    out = run(settings, corpus_of_pairs)
    assert set(scripted.asked.values()) == {2}
    assert len(scripted.asked) == 5
    assert ids(out / "dropped.jsonl") == ["right"]
    said: list[str] = []
    run(settings, corpus_of_pairs, said.append)
    assert said == [f"mine: {out} is done already"]
    assert sum(scripted.asked.values()) == 10


def test_beginning_anew_pays_the_oracle_for_nothing_it_has_answered(oracle, corpus_of_pairs):
    scripted, settings = oracle
    out = run(settings, corpus_of_pairs)
    lines, mined = ((out / name).read_bytes() for name in ("oracle.jsonl", "mined.jsonl"))
    run(settings, corpus_of_pairs, again=True)
    assert sum(scripted.asked.values()) == 10
    assert ((out / "oracle.jsonl").read_bytes(), (out / "mined.jsonl").read_bytes()) == (lines, mined)
    other = settings.model_copy(update={"oracle": settings.oracle.model_copy(update={"request": {"seed": 1}})})
    run(other, corpus_of_pairs, again=True)
    assert sum(scripted.asked.values()) == 20


def test_an_image_that_has_changed_is_noticed(oracle, corpus_of_pairs):
    scripted, settings = oracle
    run(settings, corpus_of_pairs)
    Image.new("RGB", (60, 60), (0, 0, 0)).save(corpus_of_pairs / "images" / "a.png")
    with pytest.raises(StepError, match=r"other settings \(images\)"):
        run(settings, corpus_of_pairs)
    run(settings, corpus_of_pairs, again=True)
    assert scripted.asked == dict.fromkeys(("wrong", "right", "wavering", "mute"), 2) | {"pictured": 4}


def test_a_question_that_is_refused_is_undecided(oracle, corpus_of_pairs):
    scripted, settings = oracle
    scripted.fails, scripted.status = {"right"}, 400
    out = run(settings, corpus_of_pairs)
    assert ids(out / "undecided.jsonl") == ["right", "wavering", "mute"]
    refused = next(row for row in read_rows(out / "oracle.jsonl", Conflict) if row.id == "right")
    assert refused.chosen_first.problem.startswith("refused: oracle: HTTP 400")


def test_an_oracle_that_refuses_everything_is_an_error(oracle, corpus_of_pairs):
    scripted, settings = oracle
    scripted.fails, scripted.status = {"wrong", "pictured", "right", "wavering", "mute"}, 400
    with pytest.raises(StageError, match=r"refuses every question.*HTTP 400"):
        run(settings, corpus_of_pairs)
    scripted.fails = set()
    assert ids(run(settings, corpus_of_pairs) / "mined.jsonl") == ["wrong", "pictured"]


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_key_or_credit_that_expires_midway_stops_and_decides_nothing(oracle, corpus_of_pairs, status):
    scripted, settings = oracle
    scripted.ends_after, scripted.status = 3, status
    one_by_one = settings.model_copy(update={"oracle": settings.oracle.model_copy(update={"concurrency": 1})})
    with pytest.raises(
        StageError, match=rf"oracle: HTTP {status}.*no credit left.* What was answered is kept: .*again"
    ):
        run(one_by_one, corpus_of_pairs)
    assert not (corpus_of_pairs / "mined" / "mined.jsonl").exists()
    scripted.ends_after = None
    out = run(one_by_one, corpus_of_pairs)
    assert ids(out / "mined.jsonl") == ["wrong", "pictured"]
    assert ids(out / "dropped.jsonl") == ["right"]
    assert scripted.asked == dict.fromkeys(("wrong", "pictured", "right", "wavering", "mute"), 2)


@pytest.mark.parametrize(
    ("sides", "decision"),
    [
        (("chosen", "chosen"), "model wrong"),
        (("model", "model"), "model right"),
        (("chosen", "model"), "undecided"),
        (("model", "chosen"), "undecided"),
        (("chosen", None), "undecided"),
        ((None, "model"), "undecided"),
        ((None, None), "undecided"),
    ],
)
def test_only_an_oracle_that_says_the_same_twice_decides(sides, decision):
    given = [Answer(id=str(n), trace_id="t", order="chosen first", raw="", sides_with=s) for n, s in enumerate(sides)]
    assert decide(given) == decision
