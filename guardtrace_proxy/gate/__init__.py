"""The stream gate: what may leave, when, and in which shape. Sans-I/O: fed with events, time and verdicts."""

from guardtrace_proxy.gate.ending import End
from guardtrace_proxy.gate.outputs import Decided, Output, Reject, Release, StartAudit
from guardtrace_proxy.gate.stream import StreamGate

__all__ = [
    "Decided",
    "End",
    "Output",
    "Reject",
    "Release",
    "StartAudit",
    "StreamGate",
]
