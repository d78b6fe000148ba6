"""The audit log of real requests: every dialect, both doors, full disks, several processes."""

from __future__ import annotations

import json
import stat
import threading
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guardtrace_proxy import __version__
from guardtrace_proxy.records.lines import DecisionLine, Gap
from tests.asgi.model_servers import Model, guarded, starlette_app
from tests.cli.serving import Serving, serving, write_config
from tests.server.dialects import CASES, Case
from tests.server.running import Running, ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, completion, http, judging, model_server
from tests.waiting import eventually

THINKING = "Well then, one two three four five six seven eight"
TRACE = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
DECODER = msgspec.json.Decoder(DecisionLine | Gap)


def decisions(path: Path) -> list[DecisionLine]:
    """The lines, each of which must have exactly its fields."""
    found = []
    for text in path.read_bytes().splitlines():
        line = DECODER.decode(text)
        assert isinstance(line, DecisionLine)
        assert json.loads(text).keys() == {"kind", *DecisionLine.__struct_fields__}
        found.append(line)
    return found


def logging_to(path: Path, **more: Any) -> dict[str, Any]:
    return {"audit_log": {"path": str(path), **more}}


def post(running: Running, case: Case, **more: Any) -> None:
    answer = running.raw(case.ask(**more), case.path, headers={**case.headers, **TRACE, "x-request-id": "mine"})
    assert answer.status_code == 200


def ask_often(running: Serving, times: int) -> None:
    client = running.client()
    for _ in range(times):
        list(client.chat.completions.create(**CASES[0].ask()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_dialects_decisions_are_recorded_and_no_text(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with proxy(case.script(f"{THINKING} HINT quokka", "wombat HARM"), config=logging_to(path)) as running:
        post(running, case, question="numbat")
        sha256 = running.app.service.config.policies["test"].sha256
    found = decisions(path)
    assert {line.audit for line in found} == set(range(1, len(found) + 1))
    for line in found:
        assert (line.request_id, line.trace_id, line.tenant) == ("mine", "ab" * 16, "all")
        assert (line.upstream, line.route, line.stream) == ("default", f"/v1{case.path}", True)
        assert (line.policy, line.policy_sha256, line.auditor) == ("test", sha256, "guard")
        assert (line.version, line.checkpoint, line.evidence) == (__version__, None, None)
        assert line.images == (0 if case.name == "completions" else 1)
        assert line.choice == 0
        assert line.audit_ms > 0
        assert line.held_ms >= 0
        assert line.ends > line.begins or not line.tokens
        assert line.failure is None
    assert [line.action for line in found].count("cut") == 1
    last = found[-1]
    assert (last.action, last.level, last.judgment, last.enforced, last.depth) == ("cut", 1.0, 1.0, True, "annotate")
    assert {line.phase for line in found} == {"thinking", "answering"}
    text = path.read_text()
    for word in ("quokka", "wombat", "numbat", "HINT", "HARM", "Well", "The trace was read", "iVBOR"):
        assert word not in text


def test_the_line_says_what_was_judged_when_and_for_how_long(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def slow(request: dict[str, Any]) -> Any:
        time.sleep(0.1)
        return judging(by_word)(request)

    with proxy(lambda _: [completion("Well HINT", "fine")], slow, config=logging_to(path)) as running:
        running.raw(ask())
    thinking, answer = decisions(path)
    assert (thinking.begins, thinking.ends, thinking.phase) == (0, len("Well HINT"), "thinking")
    assert (answer.begins, answer.ends, answer.phase, answer.stream) == (0, len("fine"), "answering", False)
    assert (thinking.position, answer.position) == (thinking.tokens, thinking.tokens + answer.tokens)
    assert thinking.audit_ms >= 100
    assert answer.held_ms >= 100
    written = [datetime.fromisoformat(line.time.replace("Z", "+00:00")) for line in (thinking, answer)]
    assert (written[1] - written[0]).total_seconds() >= 0.1
    assert abs((written[1] - datetime.now(timezone.utc)).total_seconds()) < 20


def test_failures_are_recorded_with_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with proxy(lambda _: [completion("Well", "fine")], lambda _: [http(500, "{}")], config=logging_to(path)) as running:
        running.raw(ask())
    [line] = decisions(path)
    assert (line.failure, line.action, line.level, line.judgment, line.probabilities) == (
        "refused",
        "cut",
        None,
        None,
        None,
    )
    assert (line.depth, line.auditor_ms) == (None, None)


@pytest.mark.parametrize("evidence", ["redacted", "full"])
def test_evidence_is_of_what_was_found_and_only_where_asked_for(evidence: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    thinking = "Mail ann@example.com the HINT"
    question = "Reach me at +44 20 7946 0958."
    request = ask(messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}])
    with proxy(lambda _: [completion(thinking, "fine")], config=logging_to(path, evidence=evidence)) as running:
        running.raw(request)
    first = decisions(path)[0]
    assert first.evidence is not None
    assert first.evidence.analysis == "The trace was read."
    assert first.evidence.answer == ""
    if evidence == "full":
        assert first.evidence.thinking == thinking
        assert first.evidence.query == f"system: Be kind.\nuser: {question}"
    else:
        assert first.evidence.thinking == "Mail [email] the HINT"
        assert first.evidence.query == "system: Be kind.\nuser: Reach me at [number]."


def test_a_choice_that_nobody_asked_for_is_judged_and_recorded_like_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    frames = [chunk({"content": "HARM and more"}, "stop", index=1), chunk({"content": "fine"}, "stop"), DONE]
    with proxy(lambda _: [SSE_HEAD, *frames], config=logging_to(path, evidence="full")) as running:
        reply = running.raw(ask(stream=True)).text
    assert "fine" in reply
    assert "HARM" not in reply
    assert reply.endswith(DONE.decode())
    found = {line.choice: line for line in decisions(path)}
    assert found.keys() == {0, 1}
    assert (found[1].action, found[1].failure) == ("cut", None)
    assert found[1].evidence is not None
    assert found[1].evidence.query == "user: Please help."


def test_safe_text_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with proxy(lambda _: [completion("well", "fine")], config=logging_to(path, evidence="full")) as running:
        running.raw(ask())
    assert [line.evidence for line in decisions(path)] == [None, None]


def test_choices_have_their_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    body = json.loads(completion("well", "fine").split(b"\r\n\r\n")[1])
    body["choices"].append({**body["choices"][0], "index": 1})
    with proxy(lambda _: [http(200, json.dumps(body))], config=logging_to(path)) as running:
        running.raw(ask(n=2))
    assert sorted((line.choice, line.phase) for line in decisions(path)) == [
        (choice, phase) for choice in (0, 1) for phase in ("answering", "thinking")
    ]


def test_inside_a_model_server_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    chat = CASES[0]
    model = Model(lambda _: chat.frames(THINKING, "fine HARM"))
    with guarded(starlette_app(model), config=logging_to(path)) as running:
        running.raw(chat.ask())
    assert decisions(path)[-1].action == "cut"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_stops_nothing() -> None:
    with proxy(lambda _: [completion("well", "fine HARM")], config=logging_to(Path("/dev/full"))) as running:
        for _ in range(3):
            assert running.raw(ask()).json()["choices"][0]["finish_reason"] == "content_filter"
        log = running.app.service.audit_log
        assert log is not None
        assert eventually(lambda: log.is_failing)
        assert running.raw(ask()).status_code == 200
    assert (log.written, log.lost) == (0, 8)


def test_a_stopped_process_has_written_every_decision(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with model_server(CASES[0].script(THINKING, "fine")) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(tmp_path, upstream.url, auditor.url, audit_log={"path": "audit.jsonl"})
        with serving(config) as running:
            ask_often(running, 20)
            assert running.stop() == 0
    found = decisions(path)
    assert len({line.request_id for line in found}) == 20
    replies = [json.loads(text) for text in next(tmp_path.glob("log-*.txt")).read_text().splitlines()]
    assert len(found) == sum(reply["audits"] for reply in replies if reply["event"] == "reply")


def test_processes_share_a_file(tmp_path: Path) -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(model_server(CASES[0].script(THINKING, "fine")))
        auditor = stack.enter_context(model_server(judging(by_word)))
        config = write_config(tmp_path, upstream.url, auditor.url, audit_log={"path": "audit.jsonl"})
        both = [stack.enter_context(serving(config)) for _ in range(2)]
        clients = [threading.Thread(target=ask_often, args=(each, 15)) for each in both]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert [each.stop() for each in both] == [0, 0]
    found = decisions(tmp_path / "audit.jsonl")
    assert len({line.request_id for line in found}) == 30


def test_the_embedded_auditors_weights_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    from guardtrace_proxy.auditor import BUILT_IN
    from guardtrace_proxy.auditor.checkpoint import weights_sha256

    path = tmp_path / "audit.jsonl"
    own = {"backend": "transformers", "base_url": None, "model": BUILT_IN, "depth": "label", "timeout_ms": 60_000}
    with proxy(lambda _: [completion("well", "fine")], config={"auditor": own, **logging_to(path)}) as running:
        running.raw(ask())
    for line in decisions(path):
        assert (line.auditor, line.checkpoint) == (BUILT_IN, weights_sha256(BUILT_IN))
        assert line.probabilities is not None
        assert sum(msgspec.structs.astuple(line.probabilities)) == pytest.approx(1, abs=1e-5)


def test_a_fallback_that_judged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with model_server(judging(by_word)) as second:
        auditor = {"fallback": {"base_url": second.url, "model": "second"}}
        config = {"auditor": auditor, **logging_to(path)}
        with proxy(lambda _: [completion("well", "fine")], lambda _: [http(503, "{}")], config=config) as running:
            running.raw(ask())
    assert {line.auditor for line in decisions(path)} == {"second"}


def test_half_a_surrogate_pair_in_the_auditors_analysis_loses_no_decision(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    reply = {
        "index": 0,
        "message": {"content": r'{"analysis": "It says \ud83d.", "judgment": 1}'},
        "finish_reason": "stop",
    }
    auditor = [http(200, json.dumps({"choices": [reply]}))]
    upstream = [completion("Well", "fine")]
    with proxy(lambda _: upstream, lambda _: auditor, config=logging_to(path, evidence="full")) as running:
        assert running.raw(ask()).json()["choices"][0]["finish_reason"] == "content_filter"
    [line] = decisions(path)
    assert line.evidence is not None
    assert (line.action, line.evidence.analysis) == ("cut", "It says ?.")
