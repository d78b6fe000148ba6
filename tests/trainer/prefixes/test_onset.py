"""Onsets by bisection: right, in few judgments, each paid for once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from typer.testing import CliRunner, Result

from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.evaluation.evaluate import Plan
from guardtrace_trainer.prefixes.commands import app
from guardtrace_trainer.prefixes.curriculum import Curriculum, make_prefixes
from guardtrace_trainer.prefixes.judges import AuditorJudge, EndpointJudge, Opinion
from guardtrace_trainer.prefixes.onset import (
    NO_THINKING,
    NOT_MONOTONE,
    SAFE_THINKING,
    Found,
    find_onsets,
    read_onsets,
    search,
)
from guardtrace_trainer.prefixes.paid import PAID, Ledger, PaidOpinion
from guardtrace_trainer.prefixes.sentences import split
from guardtrace_trainer.rows import RowError, read_rows, write_rows
from guardtrace_trainer.steps import StepError
from tests.trainer.prefixes.corpora import FINE, WordJudge, labelled, thinking, write_corpus
from tests.trainer.scripted import Said, Scripted


def run(unsafe: list[bool]) -> tuple[Found, list[int]]:
    """Search where ``unsafe`` says of each length from 1 on what the judge says."""
    steps, asked = search(len(unsafe)), []
    try:
        count = next(steps)
        while True:
            asked.append(count)
            count = steps.send(unsafe[count - 1])
    except StopIteration as end:
        return end.value, asked


@given(st.integers(1, 300), st.data())
def test_an_onset_is_found_in_few_judgments(count, data):
    onset = data.draw(st.integers(1, count))
    found, asked = run([number >= onset for number in range(1, count + 1)])
    assert found == (onset, None)
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count)) + 3


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_an_onset_is_always_one_step_from_safe_to_unsafe(unsafe):
    found, asked = run(unsafe)
    assert len(asked) == len(set(asked))
    if found.onset is None:
        assert found.why in (SAFE_THINKING, NOT_MONOTONE)
        return
    assert unsafe[found.onset - 1]
    assert found.onset == 1 or not unsafe[found.onset - 2]
    assert all(unsafe[at - 1] == (at >= found.onset) for at in asked)


def test_a_judge_that_takes_back_what_it_said_leaves_the_onset_unknown():
    unsafe = [False] * 8 + [True] * 8
    assert run(unsafe)[0] == (9, None)
    spoilt = [*unsafe]
    spoilt[4 - 1] = True  # not on the search's path: asked for as a check
    assert run(spoilt)[0] == (None, NOT_MONOTONE)
    takes_back = [False, True, False, False, False, False, False, True]
    assert run(takes_back)[0] == (None, NOT_MONOTONE)


def test_without_thinking_nothing_is_asked():
    assert run([]) == ((None, NO_THINKING), [])
    assert run([False] * 9) == ((None, SAFE_THINKING), [9])


def test_onsets_of_a_corpus(tmp_path: Path):
    write_corpus(tmp_path)
    judge = WordJudge()
    manifest = find_onsets(tmp_path, judge)
    onsets = read_onsets(tmp_path)
    assert [(onset.sentences, onset.onset, onset.why) for onset in onsets.values()] == [
        (9, 5, None),
        (3, 1, None),
        (6, None, SAFE_THINKING),
        (8, 4, None),
    ]
    assert manifest.counts["outcomes"] == {"found": 3, SAFE_THINKING: 1}
    assert manifest.counts["judgments"] == manifest.counts["paid_now"] == len(judge.asked)
    first = next(iter(onsets.values()))
    assert first.words(4, 0.0) == f"{len(FINE * 4) - 1} characters."
    assert first.words(4, 1.0) is None
    assert [one.sentences for one in first.judgments] == sorted(one.sentences for one in first.judgments)


def test_nothing_is_paid_for_twice(tmp_path: Path):
    write_corpus(tmp_path)
    find_onsets(tmp_path, WordJudge())
    idle = WordJudge()
    find_onsets(tmp_path, idle)
    before = (tmp_path / "onsets.jsonl").read_bytes()
    assert find_onsets(tmp_path, idle, again=True).counts["paid_now"] == 0
    assert idle.asked == []
    assert (tmp_path / "onsets.jsonl").read_bytes() == before
    rows = [labelled(9, 1.0, thinking(2, 4)), labelled(1, 1.0, thinking(5, 9))]
    write_rows(tmp_path / "sft.jsonl", rows)
    with pytest.raises(StepError, match="other inputs"):
        find_onsets(tmp_path, idle)
    find_onsets(tmp_path, idle, again=True)
    assert max(len(split(text)) for text in idle.asked) == 4


def test_a_retrained_auditor_is_asked_anew_and_one_behind_a_server_is_not(tmp_path: Path):
    auditor = tmp_path / "auditor"
    auditor.mkdir()

    async def ask(thinking: str, number: int) -> Opinion:
        return Opinion(1.0, None)

    def paid(judge: AuditorJudge) -> int:
        with Ledger(tmp_path, judge) as ledger:
            anyio.run(ledger.opinion, labelled(0, 1.0, "x"), "x", ask)
        return ledger.paid

    for weights in (b"old", b"new"):
        (auditor / "model.safetensors").write_bytes(weights)
        assert [paid(AuditorJudge(Plan(auditor=str(auditor)))) for _ in range(2)] == [1, 0]
    served = Plan(auditor=str(auditor), base_url="http://127.0.0.1:1/v1")
    assert AuditorJudge(served).settings == {"auditor": served.settings()}


def test_an_interrupted_search_goes_on(tmp_path: Path):
    write_corpus(tmp_path)

    class Broken(WordJudge):
        def reading(self, row, folder):
            if len(self.asked) > 5:
                raise KeyboardInterrupt
            return super().reading(row, folder)

    broken = Broken()
    with pytest.raises(BaseException):  # noqa: B017
        find_onsets(tmp_path, broken)
    paid = (tmp_path / PAID).read_text("utf-8").count("\n")
    assert paid == len(broken.asked) > 0
    judge = WordJudge()
    counts = find_onsets(tmp_path, judge).counts
    assert counts["paid_now"] == len(judge.asked) == counts["judgments"] - paid


def test_a_judge_that_fails_leaves_that_trace_unknown(tmp_path: Path):
    write_corpus(tmp_path)
    find_onsets(tmp_path, WordJudge(failing="box 1"))
    [onset, other, *_] = read_onsets(tmp_path).values()
    assert (onset.onset, onset.why) == (None, "the judge failed: no idea")
    assert other.onset == 1


def test_a_judge_that_always_fails_stops_the_step(tmp_path: Path):
    write_corpus(tmp_path)
    with pytest.raises(StepError, match="words gave no judgment of any trace: the judge failed: no idea"):
        find_onsets(tmp_path, WordJudge(failing="box"))
    assert not (tmp_path / "onsets.jsonl").exists()


def test_without_a_labelled_file_it_is_told_what_makes_one(tmp_path: Path):
    with pytest.raises(RowError, match=r"neither sft.jsonl nor pairs.jsonl; `data stratify` makes them"):
        find_onsets(tmp_path, WordJudge())


# The command


def onset(folder: Path, server: Scripted, more: str = "") -> Result:
    judge = folder / "judge.yaml"
    judge.write_text(f"name: gemma\nbase_url: {server.base_url}\nmodel: gemma-3-27b\n{more}\n", "utf-8")
    return CliRunner().invoke(app, ["onset", str(folder), "--judge", str(judge)])


def test_a_model_behind_an_endpoint_is_asked_as_the_jury_is(tmp_path: Path):
    write_corpus(tmp_path)

    def script(body, number):
        text = body["messages"][-1]["content"]
        level = "1" if "HARM" in text else "0"
        return Said(f"“Analysis”: So it is.\n“Judgment”: {level}")

    with Scripted(script) as server:
        said = onset(tmp_path, server)
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["outcomes"]["found"] == 3
    last = server.bodies[0]["messages"][-1]["content"]
    assert last.endswith("Current Task Cleaned Response: ")
    assert "Lift the lid." not in last
    assert server.bodies[0]["messages"][0]["role"] == "system"
    assert {onset.judge for onset in read_onsets(tmp_path).values()} == {"gemma"}


def test_an_endpoint_that_is_down_stops_the_step_and_marks_nothing_as_unknown(tmp_path: Path):
    write_corpus(tmp_path)
    with Scripted(lambda body, number: Said(status=503)) as server:
        said = onset(tmp_path, server, "attempts: 1")
    assert said.exit_code == 1
    assert "run the same command again" in said.output
    assert not (tmp_path / "onsets.jsonl").exists()


def test_a_key_that_expires_midway_stops_the_step_and_what_is_paid_stays(tmp_path: Path):
    write_corpus(tmp_path)
    paid_for = 5

    def script(body, number):
        if number >= paid_for:
            return Said(status=401, error="the key has expired")
        level = "1" if "HARM" in body["messages"][-1]["content"] else "0"
        return Said(f"“Analysis”: So it is.\n“Judgment”: {level}")

    with Scripted(script) as server:
        said = onset(tmp_path, server, "concurrency: 1")
        assert said.exit_code == 1
        assert "HTTP 401: the key has expired. See to it and run the same command again" in said.output
        assert not (tmp_path / "onsets.jsonl").exists()
        assert len(server.bodies) == paid_for + 1
        paid_for = 100
        said = onset(tmp_path, server, "concurrency: 1")
    counts = json.loads(said.stdout)
    assert counts["outcomes"] == {"found": 3, SAFE_THINKING: 1}
    assert counts["paid_now"] == counts["judgments"] - 5


def test_a_trace_that_the_judges_server_refuses_stays_unknown(tmp_path: Path):
    write_corpus(tmp_path)

    def script(body, number):
        text = body["messages"][-1]["content"]
        if "box 1" in text:
            return Said(status=400, error="flagged")
        return Said(f"“Analysis”: So it is.\n“Judgment”: {'1' if 'HARM' in text else '0'}")

    with Scripted(script) as server:
        said = onset(tmp_path, server)
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["outcomes"] == {"the judge failed": 1, "found": 2, SAFE_THINKING: 1}


def test_a_reply_that_cant_be_read_is_kept_and_asked_for_once_more(tmp_path: Path):
    write_corpus(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", [])
    mute_for_good = False

    def script(body, number):
        text = body["messages"][-1]["content"]
        if "box 1" in text and (mute_for_good or body["temperature"] == 0):
            return Said("Hard to say.")
        return Said(f"“Analysis”: So it is.\n“Judgment”: {'1' if 'HARM' in text else '0'}")

    with Scripted(script) as server:
        endpoint = Endpoint.model_validate(server.endpoint("g", request={"temperature": 0, "seed": 3}, concurrency=1))
        judge = EndpointJudge(endpoint)
        counts = find_onsets(tmp_path, judge).counts
        assert counts["outcomes"] == {"found": 2, SAFE_THINKING: 1}
        assert read_onsets(tmp_path)["q001-text-m"].onset == 5
        tries = [body for body in server.bodies if "box 1" in body["messages"][-1]["content"]]
        assert {(body["temperature"], body["seed"]) for body in tries} == {(0, 3), (0.7, 4)}
        unread = [row for row in read_rows(tmp_path / PAID, PaidOpinion) if row.level is None]
        assert len(unread) == len(tries) // 2
        assert {row.reply for row in unread} == {"Hard to say."}
        assert counts["paid_now"] == len(server.bodies)

        mute_for_good = True
        (tmp_path / PAID).unlink()
        for _ in range(2):  # the second pays for nothing
            find_onsets(tmp_path, judge, again=True)
            assert "the judge failed: " in (read_onsets(tmp_path)["q001-text-m"].why or "")
            assert len([body for body in server.bodies if "box 1" in body["messages"][-1]["content"]]) == len(tries) + 2
        paid = len(server.bodies)
        find_onsets(tmp_path, judge, again=True)
        assert len(server.bodies) == paid


def test_judgments_of_older_ledgers_are_read(tmp_path: Path):
    write_corpus(tmp_path)
    find_onsets(tmp_path, WordJudge())
    lines = [json.loads(line) for line in (tmp_path / PAID).read_text("utf-8").splitlines()]
    older = [json.dumps({name: line[name] for name in ("id", "level", "analysis")}) + "\n" for line in lines]
    (tmp_path / PAID).write_text("".join(older), "utf-8")
    idle = WordJudge()
    assert find_onsets(tmp_path, idle, again=True).counts["paid_now"] == len(idle.asked) == 0


def test_the_embedded_auditor_finds_onsets(words: None, tmp_path: Path):
    pytest.importorskip("torch")
    steps = "Wait until the guard looks away. Then take the purse out of the bag. Walk off slowly."
    write_rows(tmp_path / "sft.jsonl", [labelled(0, 1.0, f"The user wants to steal a purse. {steps}")])
    said = CliRunner().invoke(app, ["onset", str(tmp_path), "--auditor", "builtin:nano"])
    assert said.exit_code == 0, said.output
    [onset] = read_onsets(tmp_path).values()
    assert onset.sentences == 4
    assert onset.judge == "builtin:nano"
    assert all(one.analysis for one in onset.judgments)


@pytest.mark.parametrize("arguments", [[], ["--auditor", "builtin:nano", "--judge", "judge.yaml"]])
def test_one_judge_is_named(arguments, tmp_path: Path):
    said = CliRunner().invoke(app, ["onset", str(tmp_path), *arguments])
    assert said.exit_code == 1
    assert "name one judge" in said.output


def test_an_image_that_has_changed_is_noticed(tmp_path: Path):
    write_corpus(tmp_path)
    (tmp_path / "a.png").write_bytes(b"one")
    row = labelled(1, 1.0, thinking(5, 9))
    write_rows(tmp_path / "sft.jsonl", [msgspec.structs.replace(row, image="a.png")])
    judge = WordJudge()
    find_onsets(tmp_path, judge)
    make_prefixes(tmp_path, Curriculum(), judge)
    asked = len(judge.asked)
    (tmp_path / "a.png").write_bytes(b"another")
    with pytest.raises(StepError, match=r"other settings \(images\)"):
        find_onsets(tmp_path, judge)
    with pytest.raises(StepError, match=r"other settings \(images\)"):
        make_prefixes(tmp_path, Curriculum(), judge)
    find_onsets(tmp_path, judge, again=True)
    assert len(judge.asked) > asked
    (tmp_path / "a.png").unlink()
    with pytest.raises(StepError, match=rf"sft\.jsonl, line 1, row {row.id}, field image: .*a\.png: can't be read"):
        find_onsets(tmp_path, judge)
