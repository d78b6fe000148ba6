"""The fuzzer's properties hold for its seeds, and for a few inputs that once broke one; they can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from guardtrace_proxy.wire import chat_spans, completion, messages, responses
from guardtrace_proxy.wire.events import Event
from guardtrace_proxy.wire.responses_said import Placed, Said
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.fuzz.mutations import inputs
from tests.fuzz.properties import NAMES, check, header, seeds

HEADERS = {name: header(name, ThinkingStyle()) for name in NAMES}


@pytest.mark.parametrize("seed", list(seeds()))
def test_they_hold_for_the_recordings(seed: bytes) -> None:
    check(seed)


@settings(max_examples=300, deadline=None)
@given(inputs)
def test_they_hold_for_mutated_recordings(data: bytes) -> None:
    check(data)


MISSED = {
    "chat": (chat_spans, "field_strings", b'data: {"choices": [{"delta": {"vendor": "x"}}]}\n\n'),
    "completions": (completion, "field_strings", b'data: {"choices": [{"text": "", "vendor": "x"}]}\n\n'),
    "responses": (responses, "places_of", b'data: {"type": "response.vendor.note", "note": "x"}\n\n'),
    "messages": (messages, "places_of", b'data: {"type": "vendor_note", "note": "x"}\n\n'),
}


@pytest.mark.parametrize("dialect", NAMES)
def test_a_string_that_is_missed_is_noticed(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, finder, event = MISSED[dialect]
    check(HEADERS[dialect] + event)
    monkeypatch.setattr(module, finder, lambda *_, **__: iter(()))
    with pytest.raises(AssertionError, match="'x' is in no span"):
        check(HEADERS[dialect] + event)


def test_a_repetition_that_says_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n'
    again = b'data: {"type": "response.output_text.done", "text": "y"}\n\n'
    check(HEADERS["responses"] + said + again)
    monkeypatch.setattr(Said, "place", lambda self, place, *_: Placed(place.slot, False))
    with pytest.raises(AssertionError, match="'y' is in no span"):
        check(HEADERS["responses"] + said + again)


def test_an_event_may_say_again_what_it_goes_on_with() -> None:
    said = b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n'
    content = b'"content": [{"type": "output_text", "text": "x"}]'
    whole = b'"response": {"output": [{"type": "message", "id": "", ' + content + b"}]}"
    check(HEADERS["responses"] + said + said.replace(b'"x"', b'"y", ' + whole))


@pytest.mark.parametrize("dialect", NAMES)
def test_bytes_that_change_are_noticed(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "raw", property(lambda event: b"data: {}\n\n"))
    with pytest.raises(AssertionError, match="bytes changed"):
        check(HEADERS[dialect] + b'data: {"choices": [], "type": "response.x"}\n\n')


def test_the_fuzzer_runs_and_replays(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fuzz"]
    for arguments in (["--engine", "hypothesis", "--seconds", "1"], ["--replay", "README.md"]):
        done = subprocess.run(
            [*command, *arguments], cwd=root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "every property holds" in done.stdout
