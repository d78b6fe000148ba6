"""The log is JSON or lines for people, and never holds a word of what users or models wrote."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
import structlog

from guardtrace_proxy.telemetry.logs import configure_logging
from tests.cli.serving import GUARDTRACE, Serving, serving, write_config
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, completion, http, judging, model_server, stream
from tests.telemetry.pictures import picture

QUESTION, THINKING, ANSWER, KEY = "quokka-question", "wombat-thinking", "numbat-answer", "gt-bilby-key"
PICTURE, ANALYSIS, ERROR = "dingo-picture", "emu-analysis", "taipan-error"
MARKERS = (QUESTION, THINKING, ANSWER, KEY, PICTURE, ANALYSIS, ERROR)

RAISING = f"""
import guardtrace_proxy.server.record as record
import guardtrace_proxy.server.answer as answer
decided, read = record.ReplyRecord.decided, answer._read
def failing_decided(self, outcome):
    decided(self, outcome)
    if "boom-in-stream" in self._log._context["request_id"]:
        raise ValueError("{THINKING}")
def failing_read(dialect, body, settings):
    if b"boom-before" in body:
        raise ValueError(body.decode())
    return read(dialect, body, settings)
record.ReplyRecord.decided, answer._read = failing_decided, failing_read
{GUARDTRACE}
"""
"""The server with two defects: exceptions that carry user text, before the reply and in the middle of it."""


def body(model: str, url: str | None = None, **more: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": url or picture(PICTURE)}},
    ]
    return {"model": model, "messages": [{"role": "user", "content": parts}], **more}


def thinker(request: dict[str, Any]) -> Iterable[bytes]:
    thinking, answer = f"Hm {THINKING} one two three four five six", f"So {ANSWER} one two three"
    model = request.get("model")
    if model == "refusing":
        return [http(400, json.dumps({"error": {"message": f"{ERROR} {QUESTION}", "code": 400}}))]
    if model == "html":
        return [http(502, f"<html>{ERROR}</html>", f"text/html; x={ERROR}")]
    if not request.get("stream"):
        return [completion(f"{thinking} HARM", answer)] if model == "harm" else [completion(thinking, answer)]
    frames = stream(
        f"{thinking} HARM" if model == "harm" else thinking, f"{answer} HINT" if model == "hint" else answer
    )
    if model == "breaking":
        return [SSE_HEAD.replace(b"Connection: close", b"Content-Length: 999999"), *frames[:5]]
    if model == "unfinished":
        return [SSE_HEAD, *frames[:-2]]
    if model == "malformed":
        return [SSE_HEAD, *frames[:4], b"data: {" + THINKING.encode() + b"\n\n", *frames[4:]]
    if model == "erring":
        return [SSE_HEAD, *frames[:4], f'data: {{"error": {{"message": "{ERROR} {THINKING}"}}}}\n\n'.encode(), DONE]
    if model == "odd":
        return [SSE_HEAD, chunk({"content": [{"text": ANSWER}], "audio": ANSWER}), *frames]
    return [SSE_HEAD, *frames]


def guard(request: dict[str, Any]) -> Iterable[bytes]:
    """Answers, quotes what it read, fails or talks nonsense, by what its prompt says."""
    text = json.dumps(request, ensure_ascii=False)
    if "two three four five six" not in text:
        return judging(by_word)(request)
    if "guard-refuses" in text:
        return [http(400, json.dumps({"error": {"message": f"{ERROR}: {text}", "type": ERROR}}))]
    if "guard-rambles" in text:
        return [http(200, json.dumps({"choices": [{"message": {"content": f"{ANALYSIS} {THINKING}"}}]}))]
    if "guard-html" in text:
        return [http(200, f"<html>{ERROR}</html>", "text/html")]
    level = by_word(request["messages"][-1]["content"][-1]["text"])
    reply = f"“Analysis”: {ANALYSIS} quotes {THINKING}.\n“Judgment”: {level}"
    return [http(200, json.dumps({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}))]


def traffic(running: Serving) -> None:
    client = running.client(KEY)
    for model in ("benign", "harm", "hint", "refusing", "html", "breaking", "unfinished", "malformed", "erring", "odd"):
        for streamed in (True, False):
            with suppress(openai.OpenAIError, httpx.HTTPError):
                reply = client.chat.completions.create(**body(model, stream=streamed))
                list(reply) if streamed else None
    for how in ("guard-refuses", "guard-rambles", "guard-html"):
        request = body("benign", stream=True)
        request["messages"].insert(0, {"role": "system", "content": how})
        list(client.chat.completions.create(**request))
    bad = [
        (body("benign", f"data:image/png;base64,{PICTURE}"), {}),
        (body("benign", f"https://{PICTURE}.example/x.png"), {}),
        (body("benign", stream=QUESTION), {}),
        (b'{"' + QUESTION.encode(), {}),
        (body("benign"), {"authorization": f"Bearer {KEY}-unknown"}),
        (body("benign"), {"authorization": f"Basic {KEY}"}),
        (body("boom-before"), {}),
        (body("benign", stream=True), {"x-request-id": "boom-in-stream"}),
        (body("benign"), {"x-request-id": f"not an id: {QUESTION}"}),
    ]
    with httpx.Client(trust_env=False, timeout=30) as raw:
        for content, headers in bad:
            with suppress(httpx.HTTPError):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                url = running.url + "/v1/chat/completions"
                raw.post(url, content=data, headers={"authorization": f"Bearer {KEY}", **headers})
        raw.get(f"{running.url}/v1/{QUESTION}", params={"q": QUESTION})
        with suppress(httpx.HTTPError), raw.stream("POST", running.url + "/v1/chat/completions", json=body("benign")):
            pass


def log_of(folder: Any, format: str) -> str:
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    with model_server(thinker) as upstream, model_server(guard) as auditor:
        config = write_config(
            folder,
            upstream.url,
            auditor.url,
            tenants={"all": {"policy": "test"}, "acme": {"policy": "test", "keys": [hashed]}},
            logging={"format": format, "level": "debug"},
        )
        with serving(config, program=RAISING) as running:
            traffic(running)
            assert running.stop() == 0
        return running.log.read_text("utf-8")


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_user_text_is_logged_whatever_happens(tmp_path, format):
    said = log_of(tmp_path, format)
    for event in ("reply", "audit", "audit failed", "internal error", "upstream broke off", "image not fetched"):
        assert event in said
    assert "boom-in-stream" in said
    for marker in MARKERS:
        lines = [line for line in said.splitlines() if marker in line]
        assert not lines, f"{marker} is in the log: {lines[0][:600]}"
    if format == "json":
        events = [json.loads(line) for line in said.splitlines()]
        assert all({"event", "level", "timestamp"} <= set(event) for event in events)
        # The verdict stands beside the log's own level, in audits and in replies.
        replies = [event for event in events if event["event"] == "reply"]
        assert {(1.0, "cut", "info", "acme")} <= {(e["verdict"], e["action"], e["level"], e["tenant"]) for e in replies}
        audits = [event for event in events if event["event"] == "audit"]
        assert {event["verdict"] for event in audits} == {None, 0.0, 0.5, 1.0}
        assert all((event["auditor_ms"] is None) == (event["failure"] is not None) for event in audits)


def shown(capsys: pytest.CaptureFixture[str], format: Any, level: str = "debug") -> str:
    configure_logging(format, level)
    try:
        log = structlog.get_logger("guardtrace")
        log.info("hello", answer=42)
        try:
            try:
                raise ValueError(THINKING)
            except ValueError as error:
                raise KeyError(QUESTION) from error
        except KeyError:
            log.exception("internal error", error="KeyError")
        logging.getLogger("uvicorn.error").error("said %s\nfuture: %s", "by others", ANSWER, exc_info=OSError(ANSWER))
        logging.getLogger("httpx").info("%s", QUESTION)
        return capsys.readouterr().err
    finally:
        structlog.reset_defaults()
        logging.basicConfig(handlers=[], force=True)


def test_json_is_one_object_a_line(capsys):
    first, second, third = (json.loads(line) for line in shown(capsys, "json").splitlines())
    assert (first["event"], first["answer"], first["level"]) == ("hello", 42, "info")
    assert first["timestamp"].endswith("Z")
    assert [error["type"] for error in second["exception"]] == ["KeyError", "ValueError"]
    assert all(__file__ in error["frames"][-1] for error in second["exception"])
    assert (third["event"], third["logger"], third["level"]) == ("said by others", "uvicorn.error", "error")
    assert third["exception"] == [{"type": "OSError", "frames": []}]


def test_console_is_for_people(capsys):
    said = shown(capsys, "console")
    assert "hello" in said
    assert "answer=42" in said
    assert "\x1b" not in said
    assert f"  {__file__}:" in said
    assert not any(marker in said for marker in MARKERS)


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 3), ("warning", 2), ("error", 2)])
def test_levels_below_the_one_set_are_left_out(capsys, level, lines):
    assert len(shown(capsys, "json", level).splitlines()) == lines
