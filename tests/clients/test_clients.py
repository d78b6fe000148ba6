"""Clients that people use read what the proxy sends, over real sockets, and docs/clients.md says what they show."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.clients.driving import CLIENTS, SCRIPTS, Started
from tests.clients.page import ANSWER, MESSAGE, PAGE, THINKING, cell, tables
from tests.clients.upstreams import UPSTREAMS
from tests.server.running import proxy
from tests.server.scripted import SSE_HEAD, Script

LEAK = f"{THINKING} Now the HARM is spelt out here."
REFUSAL = "I can't help with that."
COLUMNS = {
    "streams": ["benign", "cut", "`cut_shape: error`", "upstream breaks off", "leaving"],
    "whole": ["benign", "cut", "`cut_shape: error`"],
}
ERROR_SHAPE = {"cut_shape": "error"}


def replay(*parts: bytes) -> Script:
    return lambda request: parts


def streaming(client: Started, thinking: str, answer: str) -> Script:
    return replay(SSE_HEAD, *UPSTREAMS[client.row.dialect].frames(thinking, answer))


def whole(client: Started, thinking: str, answer: str) -> Script:
    return replay(UPSTREAMS[client.row.dialect].whole(thinking, answer))


def breaking_off(client: Started) -> Script:
    frames = UPSTREAMS[client.row.dialect].frames(THINKING, ANSWER)
    last = next(number for number, frame in enumerate(frames) if b'"what "' in frame)
    return replay(SSE_HEAD, *frames[: last + 1])


def endless(client: Started) -> Script:
    """Ten seconds of a benign reply, a word at a time, unless the reader leaves."""

    def script(_: dict[str, Any]) -> Iterable[bytes]:
        yield SSE_HEAD
        for frame in UPSTREAMS[client.row.dialect].frames("word " * 40, "word " * 1960):
            yield frame
            time.sleep(0.005)

    return script


@pytest.fixture(scope="module", params=CLIENTS, ids=[f"{client.home} {client.script}" for client in CLIENTS])
def client(request: pytest.FixtureRequest) -> Iterator[Started]:
    started = Started(request.param)
    yield started
    started.close()


def take(client: Started, case: str, script: Script, policy: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the client saw of the script's reply behind the proxy; never the harmful part."""
    with proxy(script, policy=policy) as running:
        seen = client.ask(case, running.url + "/v1")
    assert "HARM" not in "".join(seen["everything"])
    return seen


def check_page(client: Started, table: str, column: str, shown: str) -> None:
    rows = tables()[table]
    assert client.name in rows, f"{PAGE.name}, table {table}: no row for {client.name}"
    assert rows[client.name][column] == shown


def raises_its_own(client: Started, seen: dict[str, Any]) -> bool:
    return (seen["error"] or "").partition(".")[0] in client.row.own


def is_filtered(client: Started, seen: dict[str, Any], case: str) -> bool:
    if seen["error"] or client.row.on_filter:
        return seen["error"] == client.row.on_filter
    if case not in client.row.tells_finish:
        return seen["finish"] is None
    return seen["finish"] in ("content_filter", "content-filter", "refusal")  # the AI SDK's spelling, Anthropic's word


def benign_end(client: Started, case: str) -> str | None:
    return (client.row.finish or UPSTREAMS[client.row.dialect].finish) if case in client.row.tells_finish else None


def test_a_benign_stream_arrives_intact(client: Started) -> None:
    with proxy(streaming(client, THINKING, ANSWER)) as running:
        seen = client.ask("stream", running.url + "/v1")
        direct = client.ask("stream", running.upstream.url)
    assert {**seen, "everything": None} == {**direct, "everything": None}
    assert (seen["text"], seen["finish"], seen["error"]) == (ANSWER + " ", benign_end(client, "stream"), None)
    assert seen["thinking"] == (THINKING + " " if client.row.reads_reasoning else "")
    check_page(client, "streams", "benign", cell(seen))


def test_a_cut_ends_with_the_policys_message(client: Started) -> None:
    seen = take(client, "stream", streaming(client, LEAK, REFUSAL))
    assert seen["text"] == MESSAGE
    assert "HARM" not in seen["thinking"]
    assert is_filtered(client, seen, "stream")
    check_page(client, "streams", "cut", cell(seen, LEAK))


def test_a_cut_in_the_answer_looks_the_same(client: Started) -> None:
    seen = take(client, "stream", streaming(client, THINKING, "HARM comes at once."))
    assert seen["text"] == MESSAGE
    assert is_filtered(client, seen, "stream")


def test_an_error_frame_is_the_clients_own_exception(client: Started) -> None:
    seen = take(client, "stream", streaming(client, LEAK, REFUSAL), ERROR_SHAPE)
    assert raises_its_own(client, seen)
    assert (seen["text"], seen["finish"]) == ("", None)
    check_page(client, "streams", "`cut_shape: error`", cell(seen, LEAK))


def test_an_upstream_that_breaks_off_is_the_clients_own_exception(client: Started) -> None:
    seen = take(client, "stream", breaking_off(client))
    assert raises_its_own(client, seen)
    assert (seen["text"], seen["finish"]) == ("Four is what ", None)
    check_page(client, "streams", "upstream breaks off", cell(seen))


def test_leaving_reaches_the_upstream(client: Started) -> None:
    with proxy(endless(client)) as running:
        seen = client.ask("leave", running.url + "/v1")
        assert seen["thinking"] + seen["text"]
        assert running.upstream.left.wait(10)
    check_page(client, "streams", "leaving", seen["left_by"])


def test_a_whole_reply_arrives_intact(client: Started) -> None:
    seen = take(client, "whole", whole(client, THINKING, ANSWER))
    assert (seen["text"], seen["finish"], seen["error"]) == (ANSWER, benign_end(client, "whole"), None)
    assert seen["thinking"] == (THINKING if client.row.reads_reasoning else "")
    check_page(client, "whole", "benign", cell(seen))


def test_a_whole_reply_is_cut(client: Started) -> None:
    seen = take(client, "whole", whole(client, LEAK, REFUSAL))
    assert is_filtered(client, seen, "whole")
    assert seen["text"] == ("" if client.row.on_filter else MESSAGE)
    assert seen["thinking"] == ""
    check_page(client, "whole", "cut", cell(seen))


def test_a_whole_reply_cut_with_an_error_is_the_clients_own_exception(client: Started) -> None:
    seen = take(client, "whole", whole(client, LEAK, REFUSAL), ERROR_SHAPE)
    assert raises_its_own(client, seen)
    assert seen["text"] + seen["thinking"] == ""
    check_page(client, "whole", "`cut_shape: error`", cell(seen))


def test_the_page_has_these_clients_and_columns_and_no_others() -> None:
    found = tables()
    assert {name: list(next(iter(rows.values()))) for name, rows in found.items()} == COLUMNS
    for rows in found.values():
        beginnings = [client.name.partition("{")[0] for client in CLIENTS]
        assert len(rows) == len(CLIENTS)
        assert all(name.startswith(start) for name, start in zip(rows, beginnings, strict=True))


def test_the_page_names_the_npm_packages_versions() -> None:
    manifest = json.loads((SCRIPTS / "node" / "package.json").read_text("utf-8"))
    for version in manifest["dependencies"].values():
        assert version in PAGE.read_text("utf-8")


def test_no_address_of_a_registry_is_locked() -> None:
    lock = json.loads((SCRIPTS / "node" / "package-lock.json").read_text("utf-8"))
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
