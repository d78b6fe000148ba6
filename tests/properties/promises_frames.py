"""The promises about frames: the upstream's bytes and order, cuts, usage, and how a stream ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from guardtrace_proxy.policy.schema import Action, CutShape, Mode, OnAuditorFailure, ReasoningField
from guardtrace_proxy.server.exchange import SHUT_DOWN
from tests.properties.alphabet import ANALYSIS, known
from tests.properties.client import Frame, texts
from tests.properties.events import HEAD
from tests.properties.history import CUT_CODES, NEVER, Hearing, History
from tests.properties.sent import THINKING, Part, Sent

MOST_COUNTED = 16
PIECE_BYTES = 256
"""Of waiting text's memory, at least."""


def every_stream_ends(history: History) -> Iterator[str]:
    """Whatever happens; nothing stays held, and no more is ever held than may be."""
    log, case = history.log, history.case
    if not log.finished:
        yield "the stream never ended"
    if log.held_at_end:
        yield f"{log.held_at_end} bytes are held for ever"
    # Reading stops at the bound: one piece more, with an event that had begun before it.
    largest = log.largest_piece + max((len(event.raw) for event in case.events), default=0)
    if {case.policy.thinking.mode, case.policy.answer.mode} != {Mode.HOLD}:
        largest *= MOST_COUNTED  # text that leaves before its verdict counts by what it takes of memory
    if case.whole is None and log.most_held > case.limit + largest:
        yield f"{log.most_held} bytes were held of {case.limit}"


def what_waits_is_bounded(history: History) -> Iterator[str]:
    """Nor is more read while text that has left waits for its verdict, in any mode: each event's text for its own bytes
    or for those of a piece's memory, whichever is less."""
    case = history.case
    if case.whole is not None or history.stopped:
        return
    judged: dict[str, int] = {}
    for hearing in history.hearings:
        for char in hearing.new:
            judged[char] = min(judged.get(char, NEVER), hearing.answered)
    fed = [at for at, entry in enumerate(history.log.entries) if entry.what == "fed"]
    for before, at in itertools.pairwise(fed):
        waiting = [
            min(len(event.raw), PIECE_BYTES)
            for number, event in enumerate(case.events)
            if history.delivered(number, before + 1) and any(_waits(history, part, judged, at) for part in event.parts)
        ]
        if sum(waiting) > case.limit:
            yield f"it was read on while {len(waiting)} events waited, {sum(waiting)} bytes of {case.limit}"
            return


def _waits(history: History, part: Part, judged: dict[str, int], at: int) -> bool:
    """Whether a part has text and no audit with any of it was answered by then. Of what was cut nothing waits."""
    chars = known("".join(each.text for each in part.texts))
    return part.index not in history.cuts and bool(chars) and all(judged.get(char, NEVER) >= at for char in chars)


def unaltered_events_keep_their_bytes_and_order(history: History) -> Iterator[str]:
    """What nobody had a reason to alter leaves as it came, in its place, once."""
    if history.stopped:
        return
    passed = {frame.event for frame in history.frames}
    for number, event in enumerate(history.case.events):
        if number in passed or not history.delivered(number) or event.kind not in ("chunk", "done"):
            continue
        if event.kind == "done" and _how_it_ended(history) == "broken":
            continue
        if not any(_may_alter(history, number, part) for part in event.parts) and not _came_too_late(history, number):
            yield f"event {number} didn't leave as it came: {event.raw!r}"
    for frame in history.frames:
        if frame.late:
            yield f"out of order: {frame.raw!r}"
        if frame.kind == "rewritten" and frame.rewrites is not None:
            event = history.case.events[frame.rewrites]
            if not any(_may_alter(history, frame.rewrites, part) for part in event.parts):
                yield f"altered for nothing: {event.raw!r} became {frame.raw!r}"


def _may_alter(history: History, number: int, part: Part) -> bool:
    if part.index in history.cuts:
        return True
    moves = history.goes is not ReasoningField.AS_IS and any(THINKING in each.phases for each in part.meant)
    tagged = history.goes is not ReasoningField.AS_IS and any("t" in each.phases for each in part.meant)
    return moves or tagged or _has_hits(history, part) or _text_never_came(history, part)


def _text_never_came(history: History, part: Part) -> bool:
    """Whether it has tokens whose text the proxy didn't read, since it cut all choices that were left."""
    if part.ahead is None or not history.cuts:
        return False
    return all(other is not part.ahead for _, other in history.parts_of(part.index))


def _has_hits(history: History, part: Part) -> bool:
    """Whether something in it was redacted. Text between characters that count goes with one of its neighbours."""
    cells = history.neighbourhood(part)
    text = "".join(each.text for each in part.meant)
    hits = [cell.enforced and history.standing(cell.char) == "hit" for cell in cells]
    if not text:
        # In the middle of a run an event without text may have been dropped with it.
        return any(hits)
    asked_for = [each for each in history.hearings if each.choice == part.index and each.mark and not each.passes]
    if len(known(text)) < len(text) and any(history.policy.redaction.localize or not each.new for each in asked_for):
        # A stretch without a character that counts can't be placed.
        return True
    return any(hits)


def _came_too_late(history: History, number: int) -> bool:
    """Whether the stream had been ended when this event came in the same piece."""
    ended = [n for n, event in enumerate(history.case.events) if event.kind in ("malformed", "done")]
    if ended and number > ended[0]:
        return True
    return history.left_at != NEVER and all(index in history.cuts for index in range(history.case.choices))


def frames_are_the_streams_own(history: History) -> Iterator[str]:
    """The official client's types take them; id, model and created are the stream's; no analysis is in them."""
    if ANALYSIS.encode() in history.log.sent:
        yield "the auditor's analysis left"
    if history.case.whole is not None:
        return
    for frame in history.frames:
        if frame.kind in ("passed", "done", "error"):
            continue
        try:
            ChatCompletionChunk.model_validate(frame.content)
        except ValidationError as error:
            yield f"the official client can't read {frame.raw!r}: {error}"
        if any(frame.content.get(key) != HEAD[key] for key in ("id", "object", "created", "model")):
            yield f"not the stream's own head: {frame.raw!r}"
        if not {"id", "object", "created", "model", "choices", "usage", "guardtrace"} >= set(frame.content):
            yield f"unknown fields: {frame.raw!r}"


def finishes_wait_for_the_last_verdict(history: History) -> Iterator[str]:
    """A choice looks finished only when all its text was decided."""
    for frame in history.frames:
        for choice in frame.choices:
            if choice.get("finish_reason") in (None, "content_filter"):
                continue
            index = choice.get("index", 0)
            finish = _finish_event(history, index)
            for char, cell in history.cells.items():
                if cell.choice != index or not cell.enforced or cell.event > finish:
                    continue
                if history.standing(char, frame.at) is None:
                    yield f"choice {index} finished before the verdict on {char!r}"
            for hearing in history.hearings:
                if hearing.choice != index or not hearing.at < frame.at < hearing.answered:
                    continue
                # Text behind the finish, which no server should send, may still be judged.
                if any(history.cells[char].enforced and history.cells[char].event <= finish for char in hearing.new):
                    yield f"choice {index} finished during audit {hearing.asked.id}"


def cuts_have_their_frames(history: History) -> Iterator[str]:
    """The message, then an empty delta that finishes the choice, and nothing more of it. The role is there."""
    if history.case.whole is not None or history.policy.cut_shape is CutShape.ERROR:
        return
    refuses = history.policy.cut_shape is CutShape.REFUSAL
    roles: set[int] = set()
    over: set[int] = set()
    for before, frame in zip([None, *history.frames], history.frames, strict=False):
        for choice in frame.choices:
            index = choice.get("index", 0)
            if index in over:
                yield f"choice {index} says something after its cut: {frame.raw!r}"
            delta = choice.get("delta") or {}
            if delta.get("role"):
                roles.add(index)
            if frame.kind == "message":
                if index not in roles:
                    yield f"the message of choice {index} comes without a role"
                said = delta.get("refusal" if refuses else "content", "")
                if not said.endswith(history.case.endings) or (not refuses and "refusal" in delta):
                    yield f"the message is {delta}"
            if choice.get("finish_reason") == "content_filter":
                over.add(index)
                yield from _closing(history, before, frame, index)
    for number, frame in enumerate(history.frames):
        if frame.kind == "message" and not any(each.kind == "closing" for each in history.frames[number + 1 :][:1]):
            yield f"the message isn't followed by its end: {frame.raw!r}"


def _closing(history: History, before: Frame | None, frame: Frame, index: int) -> Iterator[str]:
    choice = frame.choices[0]
    if choice != {"index": index, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}:
        yield f"the closing frame is {frame.raw!r}"
    if before is None or before.kind != "message" or before.choices[0]["index"] != index:
        yield f"choice {index} is cut without a message"
    note = frame.content.get("guardtrace")
    if bool(note) is not history.policy.expose.object or (note and note["action"] != "cut"):
        yield f"the closing frame's note is {note}"
    elif note and before is not None:
        ending = history.case.endings["reason" in note]
        if not any(text.endswith(ending) for _, text in texts(before.choices[0]["delta"])):
            yield f"a cut with {note} says {before.raw!r}"


def messages_stand_outside_thinking(history: History) -> Iterator[str]:
    """For a client that reads tags, an open block is closed before the message, and a redaction keeps its tags."""
    tags = history.case.tags
    if tags is None or history.goes is not ReasoningField.AS_IS or history.case.whole is not None:
        return
    opening, closing = tags
    for index in range(history.case.choices):
        content = "".join(
            (each["delta"].get("content") or "")
            for frame in history.frames
            for each in frame.choices
            if each.get("index", 0) == index
        )
        if any(frame.kind == "message" and frame.choices[0]["index"] == index for frame in history.frames):
            for ending in history.case.endings:
                content, _, _ = content.partition(ending)
            opened = max(
                content.rfind(opening) if opening else -1, 0 if _starts_inside(history, index, content) else -1
            )
            if opened > content.rfind(closing):
                yield f"choice {index}: the message stands inside the thinking: {content!r}"
        elif not history.stopped:
            said = history.sent_channel(index, "content", "ta")
            kept = "".join(char for char in content.replace(history.policy.messages.redaction, ""))
            for tag in filter(None, (opening, closing, "<answer>", "</answer>")):
                if said.count(tag) > kept.count(tag):
                    yield f"choice {index} lost its {tag}: {content!r}"


def _starts_inside(history: History, index: int, content: str) -> bool:
    """Whether the client takes the first text for thinking: where it got any that is."""
    first = history.sent_channel(index, "content")
    return bool(content) and history.case.tags is not None and history.case.starts_open and bool(first)


def cuts_have_their_reasons(history: History) -> Iterator[str]:
    """No choice is cut without a verdict or a failure that asks for it, and every verdict that asks for it cuts."""
    for index in range(history.case.choices):
        own = [each for each in history.hearings if each.choice == index and _enforced(history, each)]
        asked_for = [each for each in own if each.action is Action.CUT]
        cut = index in history.cuts or history.stopped
        certain = history.policy.decision.confirmations == 1
        if certain and any(each.answered != NEVER for each in asked_for) and not cut:
            yield f"choice {index} wasn't cut"
        if index not in history.cuts or asked_for:
            continue
        failed = [each for each in own if each.answered != NEVER and each.mark is None]
        suspects = [each for each in own if each.action in (Action.REDACT, Action.FLAG)]
        lets_go = history.policy.on_auditor_failure is OnAuditorFailure.RELEASE
        fatal = [each for each in failed if not lets_go or _is_in_doubt(history, own, each)]
        calls = any(history.cells[char].text.path[0] == "tool_calls" for each in own for char in each.new)
        if not fatal and not (calls and suspects):
            yield f"choice {index} was cut for nothing"


def _is_in_doubt(history: History, own: list[Hearing], failed: Hearing) -> bool:
    """Whether an audit before it flagged the text in question, and nothing was done yet: the hit wasn't confirmed, or
    its unsafe sentences were being searched for."""
    before = [each for each in own if each.answered < failed.at]
    if history.policy.redaction.localize and any(each.action is Action.REDACT for each in before):
        return True
    unconfirmed = history.policy.decision.confirmations > 1 and bool(before)
    return unconfirmed and before[-1].action in (Action.REDACT, Action.FLAG, Action.CUT)


def streams_end_as_they_should(history: History) -> Iterator[str]:
    """One [DONE], last, where the reply was finished or cut; none where it broke off, but an error."""
    if history.case.whole is not None:
        return
    dones = [number for number, frame in enumerate(history.frames) if frame.data == "[DONE]"]
    if len(dones) > 1 or (dones and dones[0] != len(history.frames) - 1):
        yield "[DONE] isn't the end"
    errors = [frame for frame in history.frames if frame.kind == "error"]
    if history.given_up is not None:
        yield from _gives_up_only_where_it_must(history, history.given_up)
        return
    if history.stopped:
        if not dones or history.frames[-2].kind != "error":
            yield "the error isn't followed by [DONE]"
        return
    how = _how_it_ended(history)
    if how == "finished" and (not dones or errors):
        yield "a finished stream has no [DONE]"
    if how == "broken" and (dones or not errors or history.frames[-1] is not errors[-1]):
        yield "a broken stream looks finished"
    if how == "broken" and history.case.ending == "stopped" and SHUT_DOWN not in str(errors[-1:]):
        yield f"a stream that was stopped ends with {errors[-1:]}"
    if how == "error" and not errors and not (dones and _is_over_by_a_cut(history)):
        yield "the upstream's error is lost"


def an_end_is_told_as_it_is_seen(history: History) -> Iterator[str]:
    """Records count a reply as broken off where its client sees an error that is no cut's."""
    told = history.log.ended
    if told is None:
        return
    errors = [frame.content["error"].get("code") for frame in history.frames if frame.kind == "error"]
    seen = "broken_off" if set(errors) - set(CUT_CODES) else "whole"
    if told != seen:
        yield f"a reply that is {seen} is told as {told}"


def _is_over_by_a_cut(history: History) -> bool:
    """Whether nothing is due any more but closing frames."""
    finished = {index for index in range(history.case.choices) for _, part in history.parts_of(index) if part.finish}
    return bool(history.cuts) and len(finished | set(history.cuts)) >= history.case.choices


def _gives_up_only_where_it_must(history: History, frame: Frame) -> Iterator[str]:
    """Last, unfinished, with several choices or tokens that wait for their text, and not before that much came."""
    if frame is not history.frames[-1]:
        yield "something follows the error of a stream that was given up"
    sizes = [len(event.raw) for n, event in enumerate(history.case.events) if history.delivered(n, frame.at)]
    early = any(part.ahead is not None for _, part in history.case.parts())
    if (history.case.choices == 1 and not early) or sum(sizes) < history.case.limit:
        yield f"{sum(sizes)} bytes of {history.case.limit} were too many to hold"


def _how_it_ended(history: History) -> str:
    """finished, broken, or error: the upstream's own, behind which it may say [DONE] or not."""
    case = history.case
    came: list[tuple[int, Sent]] = [
        # Half an event is only seen at the connection's end.
        (history.delivered_at[number] if event.raw.endswith(b"\n") else history.over_at, event)
        for number, event in enumerate(case.events)
        if history.delivered(number) and (event.raw.endswith(b"\n") or history.over_at != NEVER)
    ]
    if any(event.kind == "error" for _, event in came):
        return "error"
    if history.left_at != NEVER and not any(event.kind == "malformed" for _, event in came):
        return "finished"
    cut_at = {index: _cut_at(history, index) for index in history.cuts}
    kinds = [event.kind for _, event in came]
    broke = "malformed" in kinds
    read = came[: kinds.index("malformed")] if broke else came
    over = {part.index for _, event in read for part in event.parts if part.finish} | set(cut_at)
    if len(over) < case.choices:
        return "broken"
    if not broke and ("done" in kinds or case.ending == "closed"):
        return "finished"
    broke_at = came[len(read)][0] if broke else history.over_at
    return "finished" if len(cut_at) == case.choices or max(cut_at.values(), default=-1.0) >= broke_at else "broken"


def _cut_at(history: History, index: int) -> int:
    """When the last verdict on a choice came, which cut it."""
    return max(each.answered for each in history.hearings if each.choice == index and each.answered != NEVER)


def usage_is_counted_after_a_cut(history: History) -> Iterator[str]:
    """Where it was asked for, there is one usage, before [DONE], and it is the upstream's own or what was read."""
    case = history.case
    own = [frame for frame in history.frames if frame.kind == "usage"]
    every = [frame for frame in history.frames if not frame.choices and frame.content.get("usage")]
    if own and not (case.include_usage and (history.cuts or history.stopped)):
        yield "a usage that nobody asked for"
    if case.whole is not None or history.stopped or not history.cuts or _how_it_ended(history) != "finished":
        return
    if case.include_usage and (len(every) > 1 or (not every and history.left_at != NEVER)):
        yield f"{len(every)} usage chunks"
    for frame in own:
        if frame is not history.frames[-2]:
            yield "the usage isn't right before [DONE]"
        came = [event for number, event in enumerate(case.events) if history.delivered(number, frame.at)]
        running = [event.usage for event in came if event.usage]
        read = sum(part.tokens for event in came for part in event.parts)
        expected = running[-1] if running else {"prompt_tokens": 0, "completion_tokens": read, "total_tokens": read}
        marked = bool(frame.content.get("guardtrace"))
        if frame.content["usage"] != expected or marked is not (not running and history.policy.expose.object):
            yield f"the usage is {frame.raw!r}, expected {expected}"


def whole_replies_are_whole(history: History) -> Iterator[str]:
    """A reply without streaming: untouched to the byte, or altered choice by choice; a cut is a message or a 400."""
    case = history.case
    if case.whole is None:
        return
    if len(history.frames) != 1:
        yield f"{len(history.frames)} bodies"
        return
    body = history.frames[0]
    rejected = any(entry.what == "rejected" for entry in history.log.entries)
    if rejected:
        error = body.content.get("error")
        if history.policy.cut_shape is not CutShape.ERROR or not error or error["code"] not in CUT_CODES:
            yield f"rejected with {body.raw!r}"
        return
    if body.event is None and not any(_may_alter(history, 0, part) for part in case.events[0].parts):
        yield "altered for nothing"
    for choice in body.choices:
        message, index = choice["message"], choice["index"]
        if choice["finish_reason"] == "content_filter":
            field = "refusal" if history.policy.cut_shape is CutShape.REFUSAL else "content"
            if message[field] not in history.case.endings or choice["logprobs"] is not None:
                yield f"choice {index} is cut with {message}"
            if any(value for key, value in message.items() if key not in ("role", field)):
                yield f"choice {index} is cut and says {message}"


PROMISES = (
    every_stream_ends,
    what_waits_is_bounded,
    unaltered_events_keep_their_bytes_and_order,
    frames_are_the_streams_own,
    finishes_wait_for_the_last_verdict,
    cuts_have_their_frames,
    messages_stand_outside_thinking,
    cuts_have_their_reasons,
    streams_end_as_they_should,
    an_end_is_told_as_it_is_seen,
    usage_is_counted_after_a_cut,
    whole_replies_are_whole,
)


# Inside


def _finish_event(history: History, index: int) -> int:
    return next((number for number, part in history.parts_of(index) if part.finish), NEVER)


def _enforced(history: History, hearing: Hearing) -> bool:
    if hearing.new:
        return history.cells[hearing.new[0]].enforced
    return history.mode(hearing.asked.phase.name[0], inline=history.case.tags is not None) in (Mode.HOLD, Mode.LAG)
