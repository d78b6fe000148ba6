"""The contract, held against random streams through reader, gate and writer; and an oracle that notices planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guardtrace_proxy.gate.clearance import Clearance
from guardtrace_proxy.wire.chat_writer import ChatWriter
from tests.properties.run import broken_in

CASES = 3000


def test_every_promise_is_kept() -> None:
    assert broken_in(range(CASES)) == {}


def leak(self: Clearance, tape: Any) -> None:
    self.clear = self.settled = tape.end


FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "text leaves without its verdict": (Clearance, "advance", leak),
    "no [DONE]": (ChatWriter, "done", lambda self: b""),
    "a cut without its closing frames": (ChatWriter, "cut", lambda self, index, cut: b""),
    "no usage after a cut": (ChatWriter, "usage", lambda self, usage, read, expose: b""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken)
    assert broken_in(range(400))
