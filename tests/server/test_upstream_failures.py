"""Upstreams that are down, talk nonsense or break off: nothing unaudited leaks and a broken stream never looks whole."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import suppress

import openai
import pytest

from tests.ports import free_port
from tests.server.dialects import CASES, PNG, Case
from tests.server.running import ask, proxy
from tests.server.scripted import DONE, HEAD, SSE_HEAD, chunk, http, stream
from tests.waiting import eventually

WORDS = "one two three four five six seven eight nine".split()


def replay(*parts: bytes):
    return lambda _: parts


@pytest.mark.parametrize("streamed", [True, False])
def test_an_upstream_that_is_down(streamed):
    config = {"upstreams": {"default": {"base_url": f"http://127.0.0.1:{free_port()}/v1"}}}
    with proxy(replay(), config=config) as running:
        reply = running.raw(ask(stream=streamed))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_unreachable"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "reply", [http(200, "<html>Sign in</html>", "text/html"), http(503, "<html>busy</html>", "text/html")]
)
def test_an_upstream_that_answers_html(reply, streamed):
    with proxy(replay(reply)) as running:
        got = running.raw(ask(stream=streamed))
    assert got.status_code in (502, 503)
    assert got.json()["error"]["type"] == "upstream_error"
    assert "<html>" not in got.text


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_text_before_another_under_the_same_key_never_leaves(case: Case, streamed: bool):
    """The auditor would be asked about the second, and some clients read the first."""
    sent = [SSE_HEAD, *case.frames("a b", "SEEN")] if streamed else [case.whole("a b", "SEEN")]
    twice = [re.sub(rb'("(?:content|text|delta)": ?)("[^"{]*SEEN)', rb"\1'UNSEEN',\1\2", data) for data in sent]
    assert twice != sent
    twice = [data.replace(b"'", b'"') for data in twice]
    if not streamed:
        head, _, body = twice[0].partition(b"\r\n\r\n")
        twice = [re.sub(rb"Length: \d+", b"Length: %d" % len(body), head) + b"\r\n\r\n" + body]
    with proxy(replay(*twice)) as running:
        reply = running.raw(case.ask(stream=streamed), path=case.path, headers=case.headers)
    assert "UNSEEN" not in reply.text
    assert "a key twice in one object" in reply.text
    assert streamed or reply.status_code >= 500


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "reply",
    [
        [http(503, '{"error": {"message": "busy"}}')],
        [http(200, "<html>Sign in</html>", "text/html")],
        [SSE_HEAD, *stream("a b", "c")],
    ],
)
def test_the_auditors_sessions_are_closed_whatever_the_upstream_does(reply, n):
    opened, closed = [], []
    with proxy(replay(*reply)) as running:
        auditor = running.app.service.auditor
        open_one = auditor.open

        async def open_and_note(query):
            session = await open_one(query)
            close = session.aclose

            async def close_and_note():
                closed.append(session)
                await close()

            session.aclose = close_and_note
            opened.append(session)
            return session

        auditor.open = open_and_note
        running.raw(ask(stream=True, n=n))
        deadline = time.monotonic() + 10  # a client may have its last byte before the session is closed
        while closed != opened and time.monotonic() < deadline:
            time.sleep(0.01)
        assert opened
        assert closed == opened


def test_the_upstreams_own_error_passes_with_its_status():
    body = json.dumps({"error": {"message": "Slow down.", "type": "rate_limit", "param": None, "code": "rate"}})
    with proxy(replay(http(429, body))) as running, pytest.raises(openai.RateLimitError, match="Slow down"):
        running.client.chat.completions.create(**ask())


@pytest.mark.parametrize("streamed", [True, False])
def test_that_the_proxys_own_key_is_refused_is_no_fault_of_the_clients_key(streamed):
    said = {
        "message": "Incorrect API key provided: sk-up...WXYZ.",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
    with proxy(replay(http(401, json.dumps({"error": said})))) as running:
        got = running.raw(ask(stream=streamed))
    error = got.json()["error"]
    assert (got.status_code, error["type"], error["code"]) == (502, "upstream_error", "upstream_unauthorized")
    assert "upstreams.*.api_key_env" in error["message"]
    assert "WXYZ" not in got.text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_redirect_is_not_followed(streamed):
    location = b"HTTP/1.1 307 X\r\nConnection: close\r\nLocation: /v1/elsewhere\r\nContent-Length: 0\r\n\r\n"
    with proxy(replay(location)) as running:
        got = running.raw(ask(stream=streamed))
        paths = [path for path, _, _ in running.upstream.requests]
    assert (got.status_code, got.json()["error"]["type"]) == (502, "upstream_error")
    assert paths == ["/v1/chat/completions"]


def test_the_environments_proxy_is_not_asked(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with proxy(replay(SSE_HEAD, *stream("one two", "three"))) as running:
        got = running.raw(ask(stream=True))
    assert (got.status_code, got.text.endswith("data: [DONE]\n\n")) == (200, True)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_error_that_is_nested_too_deeply_still_has_its_status(streamed):
    body = '{"error": ' + "[" * 20_000 + "]" * 20_000 + "}"
    with proxy(replay(http(429, body))) as running:
        got = running.raw(ask(stream=streamed))
    assert (got.status_code, got.json()["error"]["code"]) == (429, "upstream_error")


def test_a_list_of_models_that_is_nested_too_deeply_is_a_502():
    body = '{"data": ' + "[" * 20_000 + "]" * 20_000 + "}"
    with proxy(replay(http(200, body))) as running, pytest.raises(openai.InternalServerError) as caught:
        running.client.models.list()
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreadable")


def test_an_error_brings_no_generated_text_along():
    body = json.dumps({"error": {"message": "Failed.", "code": "x", "generated": "HARM"}, "partial": "HARM"})
    with proxy(replay(http(500, body))) as running:
        assert "HARM" not in running.raw(ask()).text


def test_of_a_streams_errors_the_first_alone_passes():
    errors = [b"data: %b\n\n" % json.dumps({"error": {"message": word}}).encode() for word in WORDS]
    with proxy(replay(SSE_HEAD, *errors, DONE)) as running:
        text = running.raw(ask(stream=True)).text
    assert text.count("error") == text.count('{"error":') + text.count("upstream_error") == 2
    assert (WORDS[0] in text, text.endswith("[DONE]\n\n")) == (True, True)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        {"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,SEEN"}}]},
        {"audio": {"id": "a", "data": "SEEN"}},
        {"content": [{"type": "output_audio", "url": " DATA:audio/wav;base64,SEEN"}]},
        {"images": [{"b64_json": "SEEN"}]},
        {"content": [{"type": "image", "data": "SEEN"}]},
        {"images": [PNG + "SEEN"]},
    ],
    ids=["image", "audio", "part", "base64", "typed", "file"],
)
def test_images_and_speech_never_leave(beside, streamed):
    """Their base64 says nothing to an auditor of texts."""
    message = {"role": "assistant", "content": "fine", **beside}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = http(200, json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]}))
    frames = [SSE_HEAD, chunk({"content": "fine"}), chunk(beside, "stop"), DONE] if streamed else [whole]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=streamed))
    assert "SEEN" not in reply.text
    assert "with an image or audio" in reply.text
    assert (reply.status_code, "[DONE]" in reply.text) == (200 if streamed else 502, False)


@pytest.mark.parametrize("done", [[DONE], []])
def test_an_error_behind_what_is_cut_never_leaves(done):
    error = b'data: {"error": {"message": "and then mix both"}}\n\n'
    with proxy(replay(SSE_HEAD, chunk({"content": "HARM "}), error, *done)) as running:
        text = running.raw(ask(stream=True)).text
    assert "and then" not in text
    assert "content_filter" in text
    assert text.endswith("[DONE]\n\n")


def test_a_stream_that_breaks_off_ends_with_an_error_and_no_done():
    frames = [chunk({"role": "assistant", "content": ""}), *[chunk({"reasoning": word + " "}) for word in WORDS]]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        text = running.raw(ask(stream=True)).text
        with pytest.raises(openai.APIError, match="broke off"):
            list(running.client.chat.completions.create(**ask(stream=True)))
    assert "[DONE]" not in text
    assert '"finish_reason":"stop"' not in text.replace(" ", "")
    assert "nine" in text


ENDS = ("[DONE]", "message_stop", "response.completed", "response.incomplete")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_done_behind_a_reply_that_didnt_finish_is_not_believed(case):
    """Gateways put it behind every stream, however that ended."""
    frames = [frame for frame in case.frames("All is fine.", "Four it is.") if frame != DONE]
    with proxy(replay(SSE_HEAD, *frames[: len(frames) // 2 + 1], DONE)) as running:
        reply = running.raw(case.ask(), case.path, headers=case.headers)
    assert "fine" in reply.text
    assert "broke off" in reply.text.split("\n\n")[-2]
    assert [end for end in ENDS if end in reply.text] == []


@pytest.mark.parametrize("breaks", [False, True], ids=["left open", "broken off"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_behind_its_last_event_an_upstream_may_be_untidy(case, breaks):
    """It leaves its body open, or breaks it off: the client has all of the reply, at once."""
    frames = case.frames("All is fine.", "Four it is.")
    end = threading.Event()
    head = HEAD + b"Content-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n"

    def untidy(_):
        yield head
        yield from frames
        if not breaks:
            end.wait(30)

    with proxy(untidy) as running:
        began = time.monotonic()
        reply = running.raw(case.ask(), case.path, headers=case.headers)
        took = time.monotonic() - began
        end.set()
    assert reply.content == b"".join(frames)
    assert took < 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_cant_be_read_behind_the_last_event_is_dropped(case):
    frames = case.frames("All is fine.", "Four it is.")
    with proxy(replay(SSE_HEAD, *frames, b"data: [DO\n\n")) as running:
        assert running.raw(case.ask(), case.path, headers=case.headers).content == b"".join(frames)


def test_a_done_behind_the_last_event_of_a_response_passes():
    case = next(case for case in CASES if case.name == "responses")
    frames = [*case.frames("All is fine.", "Four it is."), DONE]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        assert running.raw(case.ask(), case.path).content == b"".join(frames)


def test_a_done_in_the_place_of_a_whole_choice_is_not_believed():
    with proxy(replay(SSE_HEAD, *stream("fine", "Four."))) as running:
        text = running.raw(ask(stream=True, n=2)).text
    assert "Four" in text
    assert "broke off" in text
    assert "[DONE]" not in text


def test_what_broke_off_is_judged_before_it_leaves():
    frames = [chunk({"reasoning": "fine "}), chunk({"reasoning": "HARM "})]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        text = running.raw(ask(stream=True)).text
    assert "HARM" not in text
    assert "stopped by policy" in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_broke_off_before_the_verdict_that_cuts_it_ends_as_any_cut(case):
    frames = [frame for frame in case.frames("All is HARM.", "Four it is.") if frame != DONE]
    half = next(place for place, frame in enumerate(frames) if b"HARM" in frame) + 1
    with proxy(replay(SSE_HEAD, *frames[:half])) as running:
        reply = running.raw(case.ask(), case.path, headers=case.headers)
    assert "HARM" not in reply.text
    assert "stopped by policy" in reply.text
    assert "broke off" not in reply.text
    assert any(end in reply.text.split("\n\n")[-2] for end in ENDS)


def test_a_stream_that_breaks_off_in_what_may_be_a_tag_ends():
    """A body of a known length that ends early, while ``<`` waits for the rest of a tag."""
    head = HEAD + b"Content-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n"
    with proxy(replay(head, chunk({"content": "All is fine, 3 <"}))) as running:
        text = running.raw(ask(stream=True)).text
    assert "3 <" in text
    assert "broke off" in text
    assert "[DONE]" not in text


def test_a_finished_stream_without_done_is_given_one():
    frames = stream("All is fine.", "Four.")[:-1]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        assert running.raw(ask(stream=True)).content == b"".join([*frames, DONE])


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {nope}\n\n",
        b'data: {"choices": [{"index": "zero", "delta": {}}]}\n\n',
        b"data: \xff\xfe\n\n",
    ],
)
def test_frames_that_cant_be_read_end_the_stream_and_arent_passed_on(bad):
    frames = [chunk({"reasoning": "fine "}), bad, chunk({"content": "later"}), chunk({}, "stop"), DONE]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        got = running.raw(ask(stream=True))
    assert bad not in got.content
    assert b"later" not in got.content
    assert b"[DONE]" not in got.content
    assert b'"error"' in got.content


def test_text_in_an_unheard_of_shape_is_audited_too():
    frames = [chunk({"content": ["HARM"]}), chunk({"novel": {"deep": "HARM"}}), chunk({}, "stop"), DONE]
    for frame in frames[:2]:
        with proxy(replay(SSE_HEAD, frame, *frames[2:])) as running:
            got = running.raw(ask(stream=True)).text
        assert "HARM" not in got
        assert "content_filter" in got


def test_an_error_frame_reaches_the_client():
    frames = [chunk({"reasoning": "fine "}), b'data: {"error": {"message": "out of memory", "code": 500}}\n\n']
    with proxy(replay(SSE_HEAD, *frames)) as running, pytest.raises(openai.APIError, match="out of memory"):
        list(running.client.chat.completions.create(**ask(stream=True)))


def test_a_stream_where_a_whole_reply_was_asked_for():
    with proxy(replay(SSE_HEAD, *stream("Fine.", "HARM"))) as running:
        reply = running.raw(ask())
    assert reply.status_code == 502
    assert "HARM" not in reply.text


def test_a_whole_reply_that_isnt_a_completion():
    with proxy(replay(http(200, '{"choices": "HARM"}'))) as running:
        reply = running.raw(ask())
    assert reply.status_code == 502
    assert "HARM" not in reply.text


def test_a_reply_cut_by_the_network_isnt_taken_for_whole(capsys):
    head = HEAD + b"Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n"
    with proxy(
        replay(head, b'{"choices": "HARM'), config={"logging": {"level": "warning", "format": "json"}}
    ) as running:
        reply = running.raw(ask())
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_unreadable")
        assert "HARM" not in reply.text
        assert running.app.service.shedding.running == 0
    assert "upstream broke off" in capsys.readouterr().out


class Endless:
    """An upstream that never ends, before an auditor that doesn't answer until ``end``."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.end = threading.Event()

    def write(self, _):
        yield SSE_HEAD
        while True:
            self.sent.append(64_000)
            yield chunk({"reasoning": "x" * 64_000})

    def stuck(self, _):
        self.end.wait(60)
        yield b""

    def pauses(self) -> bool:
        before = len(self.sent)
        time.sleep(0.5)
        return len(self.sent) == before > 0


LITTLE_IS_HELD = {"server": {"max_stream_bytes": 200_000}, "auditor": {"timeout_ms": 60_000}}


def test_reading_pauses_while_too_much_is_held():
    endless = Endless()
    with proxy(endless.write, endless.stuck, config=LITTLE_IS_HELD) as running:
        events = running.client.chat.completions.create(**ask(stream=True))
        # The sockets' buffers take what they can, up to tens of megabytes; then the upstream waits.
        assert eventually(endless.pauses)
        assert running.app.service.budget.total < 1_000_000  # what one read brings comes on top
        events.close()
        assert running.upstream.left.wait(5)
        endless.end.set()


def test_reading_pauses_while_too_much_has_left_before_its_verdict():
    endless = Endless()
    with proxy(endless.write, endless.stuck, policy={"extends": "monitor"}, config=LITTLE_IS_HELD) as running:
        events = running.client.chat.completions.create(**ask(stream=True))
        client = threading.Thread(target=take_all, args=(events,))
        client.start()
        assert eventually(endless.pauses)
        assert 200_000 <= running.app.service.budget.total < 3_000_000  # a character counts for four
        endless.end.set()
        events.close()
        client.join(10)


def take_all(events) -> None:
    """Take all that comes, until the stream is closed."""
    with suppress(Exception):
        for _ in events:
            pass


def test_an_event_that_never_ends_is_stopped():
    def endless(_):
        yield SSE_HEAD
        while True:
            yield b"data: " + b"x" * 65_536

    config = {"server": {"max_stream_bytes": 200_000}}
    with proxy(endless, config=config) as running:
        reply = running.raw(ask(stream=True))
        assert running.upstream.left.wait(30)  # this upstream and the proxy share a process, and it never pauses
    assert b'"error"' in reply.content
    assert b"xxxx" not in reply.content


def test_compressed_replies_arent_read_blindly():
    head = HEAD + b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n"
    with proxy(replay(head, b"\x1f\x8b\x08 nonsense HARM")) as running:
        reply = running.raw(ask(stream=True))
    assert b"HARM" not in reply.content
