"""A reply that isn't streamed: it leaves once all of it is decided, in one piece."""

from __future__ import annotations

from guardtrace_proxy.gate.notes import cut_of
from guardtrace_proxy.gate.outputs import Reject, Release
from guardtrace_proxy.gate.queue import HeldEvent, HoldQueue, is_altered
from guardtrace_proxy.policy.schema import CutShape, Policy
from guardtrace_proxy.wire.reply import Writer


def is_decided(held: HeldEvent) -> bool:
    """Whether each of its choices was cut or has all its verdicts."""
    return all(part.choice.cut_by or part.end <= part.choice.leave.settled for part in held.parts)


def released_whole(held: HeldEvent, queue: HoldQueue, writer: Writer, policy: Policy) -> Release | Reject:
    """The reply as its client gets it: as it came, redacted, or with a cut in the place of choices."""
    fates = queue.fates(held)
    cuts = {part.part.index: cut_of(part.choice, queue, policy) for part in held.parts if part.choice.cut_by}
    altered = cuts or is_altered(fates) or not writer.passes(held.event)
    body = writer.rewrite(held.event, {**fates, **cuts}) if altered else held.event.raw
    if cuts and policy.cut_shape is CutShape.ERROR:
        return Reject(body, next(iter(cuts.values())).unjudged)
    return Release(body)
