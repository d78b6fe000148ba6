"""The fuzzer's properties hold for its seeds, and for a few inputs that once broke one; they can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from guardtrace_proxy.wire import chat_spans
from guardtrace_proxy.wire.events import Event
from tests.fuzz.mutations import inputs
from tests.fuzz.properties import check, seeds

HEADER = b"\x00\x07\x0d"


@pytest.mark.parametrize("seed", list(seeds()))
def test_they_hold_for_the_recordings(seed: bytes) -> None:
    check(seed)


@settings(max_examples=150, deadline=None)
@given(inputs)
def test_they_hold_for_mutated_recordings(data: bytes) -> None:
    check(data)


def test_a_string_that_is_missed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = HEADER + b'data: {"choices": [{"delta": {"vendor": "x"}}]}\n\n'
    check(data)
    monkeypatch.setattr(chat_spans, "field_strings", lambda key, value, path: iter(()))
    with pytest.raises(AssertionError, match="'x' is in no span"):
        check(data)


def test_bytes_that_change_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "raw", property(lambda event: b"data: {}\n\n"))
    with pytest.raises(AssertionError, match="bytes changed"):
        check(HEADER + b'data: {"choices": []}\n\n')


def test_the_fuzzer_runs_and_replays(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fuzz"]
    for arguments in (["--engine", "hypothesis", "--seconds", "1"], ["--replay", "README.md"]):
        done = subprocess.run(
            [*command, *arguments], cwd=root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "every property holds" in done.stdout
