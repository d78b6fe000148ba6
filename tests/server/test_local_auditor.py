"""The auditor in the proxy's own process breaks down: each stream's policy decides, and nothing unaudited leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.inference import Piece  # noqa: E402
from guardtrace_proxy.auditor.transformers import TransformersAuditor  # noqa: E402
from tests.server.running import Running, ask, proxy  # noqa: E402
from tests.server.scripted import SSE_HEAD, stream  # noqa: E402

CUT = "This response was stopped by policy."
SECRET = "Zebras are striped."
FINE = "A plain sum is asked for. Two and two make four."
NANO = {"backend": "transformers", "base_url": None, "model": "builtin:nano", "depth": "label", "timeout_ms": 60_000}


def script(request: dict[str, Any]) -> Iterator[bytes]:
    """Two streams in one: which, the question says."""
    told = SECRET if "zebras" in request["messages"][-1]["content"] else FINE
    yield from [SSE_HEAD, *stream(told, "Four.")]


def play(
    break_down: Callable[[TransformersAuditor, Callable[..., Any], Sequence[Piece]], list[torch.Tensor]],
    questions: Sequence[str],
    policy: dict[str, Any] | None = None,
) -> list[str]:
    """The replies to questions that are asked at once, as their clients get them. ``break_down`` stands in the place of
    the forward pass, once the server is up."""
    with proxy(script, config={"auditor": NANO}, policy=policy) as running:
        auditor = running.app.service.auditor
        assert isinstance(auditor, TransformersAuditor)
        forward = auditor.worker._forward
        auditor.worker._forward = lambda pieces: break_down(auditor, forward, pieces)  # type: ignore[method-assign]
        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(lambda question: _reply(running, question), questions))


def _reply(running: Running, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return running.raw(ask(messages=messages, stream=True)).text


def _is_about_zebras(auditor: TransformersAuditor, piece: Piece) -> bool:
    return "zebras" in auditor.layout.decode([*piece.reading.ids, *piece.ids])


def test_one_session_out_of_memory_ends_as_its_policy_says_and_the_others_go_on() -> None:
    broken = threading.Event()

    def out_of_memory(auditor: TransformersAuditor, forward: Any, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        if any(_is_about_zebras(auditor, piece) for piece in pieces):
            broken.set()
            raise MemoryError("can't allocate memory")
        found: list[torch.Tensor] = forward(pieces)
        return found

    with structlog.testing.capture_logs() as logged:
        replies = play(out_of_memory, ["What is 2 + 2?", "Tell me of zebras.", "What is 2 + 2?"])
    assert broken.is_set()
    assert {line["kind"] for line in logged if line["event"] == "audit failed"} == {"broken"}
    for reply in (replies[0], replies[2]):
        assert "Two and two make four." in _text(reply)
        assert CUT not in reply
    assert "could not be checked" in replies[1]
    assert "striped" not in _text(replies[1])


def test_memory_that_can_be_freed_is_freed_and_nobody_notices() -> None:
    cleared = threading.Event()

    def until_cleared(auditor: TransformersAuditor, forward: Any, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        if not cleared.is_set():
            clear = auditor.kept.clear
            auditor.kept.clear = lambda: (clear(), cleared.set())[0]  # type: ignore[method-assign, func-returns-value]
            raise MemoryError("can't allocate memory")
        found: list[torch.Tensor] = forward(pieces)
        return found

    [reply] = play(until_cleared, ["What is 2 + 2?"])
    assert cleared.is_set()
    assert "Two and two make four." in _text(reply)
    assert CUT not in reply


@pytest.mark.parametrize(("on_failure", "leaves"), [("cut", False), ("release", True)])
def test_a_device_that_is_gone_is_the_policys_business(on_failure: str, leaves: bool) -> None:
    def gone(auditor: TransformersAuditor, forward: Any, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with structlog.testing.capture_logs() as logged:
        [reply] = play(gone, ["Tell me of zebras."], {"on_auditor_failure": on_failure})
    assert {line["kind"] for line in logged if line["event"] == "audit failed"} == {"broken"}
    assert ("striped" in _text(reply)) is leaves
    assert ("could not be checked" in reply) is not leaves


def _text(reply: str) -> str:
    """What the deltas of a streamed reply say together."""
    deltas = [json.loads(line[6:])["choices"] for line in reply.splitlines() if line.startswith("data: {")]
    parts = [choice["delta"] for choices in deltas for choice in choices]
    return "".join(part.get("reasoning") or part.get("content") or "" for part in parts)
