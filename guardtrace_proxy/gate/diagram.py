"""Draws the state table as a Mermaid diagram: ``python -m guardtrace_proxy.gate.diagram > docs/gate-states.mmd``."""

from __future__ import annotations

from guardtrace_proxy.gate.states import TRANSITIONS, State


def mermaid() -> str:
    """The state diagram in Mermaid's ``stateDiagram-v2`` notation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE.value}"]
    lines += [
        f"    {state.value} --> {after.value}: {given.value}"
        for state, row in TRANSITIONS.items()
        for given, after in row.items()
    ]
    lines += [f"    {State.CUT.value} --> [*]", f"    {State.FINISHED.value} --> [*]"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(mermaid(), end="")
