"""Whether the comparison runs, and would notice a proxy that says something else; never how fast anything is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.contenders import NotMeasured, Setting
from benchmarks.listeners import listen
from benchmarks.load import WrongReply, check_answer, check_bytes, check_text, stream
from benchmarks.peers import litellm, nemo
from benchmarks.processes import pin, pss_bytes
from benchmarks.proxies import CONTENDERS, Figures
from benchmarks.proxies_table import summary
from benchmarks.script import HEAD, events, http_chunk, thinking_tokens, token_event
from benchmarks.stamps import UNIT_NS, ms_since, stamp
from tests.benchmarks.test_proxy_cpu import answering

ROOT = Path(__file__).parents[2]
REQUEST = b"POST / HTTP/1.1\r\n\r\n"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_quick_run() -> None:
    nowhere = ("--nginx", "/nowhere/nginx", "--litellm", "/nowhere", "--nemo", "/nowhere")
    command = [sys.executable, "-m", "benchmarks.proxies", "--quick", "--json", *nowhere]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    results = {each["name"]: each for each in report["results"]}
    assert list(results) == ["direct", *CONTENDERS]
    for name in ("nginx", "NeMo Guardrails", "LiteLLM"):
        assert "/nowhere" in results.pop(name)["skipped"]
    direct = results.pop("direct")
    assert direct["cpu_us"] is None
    assert direct["added_ms"]["2"][0] == 0
    for each in results.values():
        assert each["skipped"] is None
        assert each["cpu_us"] > 0
        assert each["added_ms"].keys() == {"2", "4"}
    assert results["forwarder"]["ratio_to_forwarder"] == 1
    # 77 tokens of thinking and 23 of answer: 64 + 13 + 23, or 77 + 23
    assert results["guardtrace hold"]["tokens_per_audit"] == pytest.approx(100 / 3)
    assert results["guardtrace hold, no audits"]["tokens_per_audit"] == pytest.approx(50)
    assert [name for name, each in results.items() if each["release_ms"]] == ["guardtrace hold"]


@pytest.mark.parametrize("peer", [litellm, nemo])
def test_a_peer_that_is_not_installed(peer: Callable[[Setting], object], tmp_path: Path) -> None:
    setting = Setting(tmp_path, 1, 2, None, {"litellm": tmp_path, "nemo": tmp_path})
    with pytest.raises(NotMeasured, match="make peers"), peer(setting):  # type: ignore[attr-defined]
        pass


@given(st.integers(0, 2**62), st.integers(0, 160 * 10**9))
def test_a_stamp_tells_the_time(sent: int, took: int) -> None:
    since = ms_since(stamp(sent).encode(), sent + took)
    assert abs(since - took / 1e6) <= UNIT_NS / 1e6


def paced(*texts: str) -> list[bytes]:
    return [*(token_event(text, position < 2) for position, text in enumerate(texts)), b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        (paced("abcd", "abce"), "2 of 3 tokens"),
        (paced("abcd", "abce", "abcf", "abcg"), "4 of 3 tokens"),
        (paced("abcd", "abce", "abcf")[:-1], "reply ends with"),
    ],
)
def test_listeners_notice_lost_tokens(pieces: list[bytes], complaint: str) -> None:
    body = HEAD + b"".join(map(http_chunk, pieces)) + b"0\r\n\r\n"
    with answering(body) as port, pytest.raises(WrongReply, match=complaint):
        asyncio.run(listen(port, REQUEST, 3))


def test_listeners_take_tokens_in_other_frames() -> None:
    pieces = [
        b'data: {"reasoning": "abcd", "reasoning_content": "abcd"}\n\n',
        b'data: {"content":"abceabcf"}\n\ndata: [DONE]\n\n',
    ]
    body = HEAD + b"".join(map(http_chunk, pieces)) + b"0\r\n\r\n"
    with answering(body) as port:
        assert len(asyncio.run(listen(port, REQUEST, 3))) == 3


def moved(pieces: list[bytes]) -> list[bytes]:
    return [
        piece.replace(b'"reasoning"', b'"reasoning_content"').replace(b"chatcmpl-4f", b"other-") for piece in pieces
    ]


def without_thinking(pieces: list[bytes]) -> list[bytes]:
    return [pieces[0], *pieces[1 + thinking_tokens(50) :]]


@pytest.mark.parametrize(
    ("check", "pieces", "passes"),
    [
        (check_bytes, moved(events(50)), False),
        (check_text, moved(events(50)), True),
        (check_text, moved(events(50))[:10] + moved(events(50))[11:], False),
        (check_text, without_thinking(events(50)), False),
        (check_answer, without_thinking(events(50)), True),
        (check_answer, events(50)[:-4] + events(50)[-3:], False),
    ],
)
def test_checks(check: Callable[[bytes, bytes], None], pieces: list[bytes], passes: bool) -> None:
    body = HEAD + b"".join(map(http_chunk, pieces)) + b"0\r\n\r\n"
    expected = b"".join(events(50))
    with answering(body) as port:
        if passes:
            asyncio.run(stream(port, REQUEST, expected, check))
            return
        with pytest.raises(WrongReply):
            asyncio.run(stream(port, REQUEST, expected, check))


def test_figures() -> None:
    late = [[1.0] * 63 + [9.0, 5.0], [1.0] * 63 + [9.0, 2000.0]]
    found = [
        Figures("direct", delays={2: [[1.0] * 65] * 2}),
        Figures("guardtrace hold", delays={2: late}, auditor_ms=3.0),
    ]
    found[1].cpu, found[1].audits = [10.0, 30.0, 20.0], 6
    direct, hold = summary(found, 64, 1000)
    assert direct["added_ms"][2] == [0, 0]
    assert hold["cpu_us"] == 20
    assert hold["tokens_per_audit"] == 500
    assert hold["behind"] == {2: 1}
    assert hold["added_ms"][2][0] == 0
    # The 64th tokens came after 9 ms, the last ones after 5 and 2,000
    assert hold["release_ms"][0] == 9 - 3


def test_memory_is_seen_and_processes_are_pinned() -> None:
    code = "import time, sys; data = bytearray(1) * 60_000_000; print('', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            assert pss_bytes(child.pid) > 60_000_000
            core = max(os.sched_getaffinity(0))
            pin(child.pid, core)
            assert os.sched_getaffinity(child.pid) == {core}
        finally:
            child.kill()
