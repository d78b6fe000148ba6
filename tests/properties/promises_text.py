"""The promises about text: what may leave, when, where, and what the auditor is shown of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from guardtrace_proxy.policy.schema import Action, Mode, ReasoningField
from guardtrace_proxy.wire.events import Phase
from tests.properties.alphabet import known
from tests.properties.client import Frame
from tests.properties.history import NEVER, Cell, Hearing, History
from tests.properties.sent import ANSWER, THINKING, Part, channel_of

PLAIN = ("reasoning", "reasoning_content", "thinking", "reasoning_details", "content")
"""Channels in which a placeholder can stand."""


def nothing_leaves_without_its_verdict(history: History) -> Iterator[str]:
    """§3.1, and a hit never leaves: not as text, in a copy, in logprobs or as token ids. In ``lag`` text without a
    verdict may leave until something was redacted; how much is another promise."""
    hits = {choice: _first_redaction(history, choice) for choice in range(history.case.choices)}
    for char, at in history.first_betrayed.items():
        cell = history.cells.get(char)
        if cell is None:
            yield f"{char!r} was never text of a choice"
            continue
        standing = history.standing(char, at)
        ahead = cell.mode is Mode.LAG and standing is None and at < hits[cell.choice]
        if cell.enforced and standing not in ("pass", "unaudited") and not ahead:
            yield f"{char!r} of choice {cell.choice} left in mode {cell.mode.value}, standing: {standing}"
        if not history.delivered(cell.event, at):
            yield f"{char!r} left from an event that never came whole"


def hidden_thinking_stays_hidden(history: History) -> Iterator[str]:
    """Mode ``withhold`` and ``reasoning_field: strip``: nowhere in the bytes."""
    if history.goes is not ReasoningField.STRIP:
        return
    for char in history.first_betrayed:
        if char in history.cells and history.cells[char].phase == THINKING:
            yield f"hidden thinking left: {char!r}"


def lag_keeps_its_bound(history: History) -> Iterator[str]:
    """At most ``max_lag`` tokens of a choice are ahead of their verdict, at any time."""
    lagging = [cell for cell in history.cells.values() if cell.mode is Mode.LAG]
    if not lagging:
        return
    times = sorted({frame.at for frame in history.frames})
    for index in range(history.case.choices):
        parts = [(part, _cells(history, part)) for _, part in history.parts_of(index)]
        parts = [(part, cells) for part, cells in parts if cells and all(cell.mode is Mode.LAG for cell in cells)]
        for at in times:
            ahead = [(part, cells) for part, cells in parts if _is_ahead(history, cells, at)]
            for phase, most in _bounds(history):
                tokens = sum(_surely(part, [cell for cell in cells if cell.phase == phase]) for part, cells in ahead)
                if tokens > most:
                    yield f"{tokens} tokens of choice {index} ran ahead of {most}"
                    return


def _surely(part: Part, cells: list[Cell]) -> int:
    """How many tokens of a part belong to these of its characters, at least; those that don't count may belong to
    anything."""
    length = sum(len(each.text) for each in part.texts)
    return part.tokens if len(cells) == length else max(0, part.tokens * len(cells) // length - 1)


def _bounds(history: History) -> tuple[tuple[str, int], ...]:
    """``max_lag`` of thinking and answer; thinking between tags may lag only because the answer does."""
    thinking, answer = history.policy.thinking, history.policy.answer
    return (THINKING, (thinking if thinking.mode is Mode.LAG else answer).max_lag), (ANSWER, answer.max_lag)


def text_stands_where_it_may(history: History) -> Iterator[str]:
    """Each text in its own choice and field, or in the one that the policy names; a rewritten event holds text alone."""
    for frame in history.frames:
        for choice in frame.choices:
            index = choice.get("index", 0)
            shown = history.shown(index, frame)
            for channel, text in shown:
                for char in known(text):
                    cell = history.cells.get(char)
                    if cell is None or cell.choice != index or channel not in _channels(history, cell):
                        yield f"{char!r} stands in {channel} of choice {index}"
        if frame.kind == "rewritten":
            for choice in frame.choices:
                beside = {"logprobs", "token_ids"} & {key for key, value in choice.items() if value is not None}
                if beside and not _is_untouched(history, frame, choice["index"]):
                    yield f"a rewritten choice keeps its {beside}"


def what_a_client_adds_up_is_what_was_said(history: History) -> Iterator[str]:
    """Every channel is the upstream's, with placeholders for what was redacted and an end where it was cut. What was
    judged safe isn't lost, and no text stands in two pieces where it was one."""
    for index in range(history.case.choices):
        if _is_odd(history, index):
            continue
        whole = index not in history.cuts and not history.stopped
        for channel, visible in history.channels(index).items():
            if channel not in PLAIN:
                continue
            said = _expected(history, index, channel)
            if not explains(visible, said, history.policy.messages.redaction, whole=whole):
                yield f"choice {index} said {said!r} in {channel}, the client has {visible!r}"
        if whole:
            yield from _lost(history, index)


def _lost(history: History, index: int) -> Iterator[str]:
    for char, cell in history.cells.items():
        if cell.choice != index or not history.delivered(cell.event) or char in history.first_betrayed:
            continue
        if cell.phase == THINKING and history.goes is ReasoningField.STRIP:
            continue
        if cell.text.channel == "logprobs" and _is_hit(history, cell):
            # Tokens whose text never came go all together.
            continue
        if cell.text.channel == "logprobs" and not _keeps_tokens(history, index):
            continue
        if not cell.enforced or history.standing(char) in ("pass", "unaudited"):
            yield f"{char!r} of choice {index} was lost, standing: {history.standing(char)}"


def _keeps_tokens(history: History, index: int) -> bool:
    """Whether a choice of a whole reply left as it came: of one that didn't the tokens go."""
    choices = [choice for frame in history.frames for choice in frame.choices if choice.get("index", 0) == index]
    return history.case.whole is None or any(choice["logprobs"] is not None for choice in choices)


def _is_hit(history: History, cell: Cell) -> bool:
    """Whether anything in a character's text was redacted, be it a space that was judged by itself."""
    if any(history.standing(other) == "hit" for other in known(cell.text.text)):
        return True
    return any(
        not hearing.new and hearing.mark is not None and not hearing.passes
        for hearing in history.hearings
        if hearing.choice == cell.choice
    )


def one_placeholder_a_run(history: History) -> Iterator[str]:
    """Two placeholders never stand next to each other, unless something else was said between them."""
    placeholder = history.policy.messages.redaction
    if history.goes is ReasoningField.STRIP or history.case.whole is not None:
        # Hidden thinking may stand between them; in a whole reply, text of another field.
        return
    for index in range(history.case.choices):
        last: tuple[str, str] | None = None
        for number, frame in enumerate(history.frames):
            # Copies say the same; in a frame that says two things one stands between what was said and what will be.
            said = {(_kind(where), text) for where, text in history.shown(index, frame)}
            if _lost_other_text(history, index, frame):
                last = None
                continue
            if history.goes is ReasoningField.AS_IS and any(placeholder * 2 in text for _, text in said):
                yield f"two placeholders in one text of choice {index}"
            if not said:
                continue
            where, text = next(iter(said))
            again = last is not None and last[0] == where and last[1].endswith(placeholder)
            if len(said) == 1 and again and text.startswith(placeholder) and not _lost_before(history, index, number):
                yield f"two placeholders in a row in {where} of choice {index}"
            last = (where, text) if len(said) == 1 else None


def _lost_other_text(history: History, index: int, frame: Frame) -> bool:
    """Whether a frame was altered in which a field that nobody knows, and that goes with it, said something else."""
    if frame.kind != "rewritten" or frame.rewrites is None:
        return False
    return _says_otherwise(history, index, frame.rewrites)


def _lost_before(history: History, index: int, number: int) -> bool:
    """Whether an event that no frame stands for, and that may lie just before this one, said something else in a field
    that nobody knows: where a part of it is harmful, all of it goes, and what was safe in it ends the run all the
    same."""
    stand_for = [frame.event if frame.rewrites is None else frame.rewrites for frame in history.frames]
    before = max((event for event in stand_for[:number] if event is not None), default=-1)
    after = min((event for event in stand_for[number:] if event is not None), default=len(history.case.events))
    return any(_says_otherwise(history, index, event) for event in range(before + 1, after))


def _says_otherwise(history: History, index: int, event: int) -> bool:
    parts = [part for part in history.case.events[event].parts if part.index == index]
    return any(
        text.channel not in PLAIN and not text.channel.startswith("call") for part in parts for text in part.texts
    )


def audits_show_the_whole_reply(history: History) -> Iterator[str]:
    """What was judged before, as it is released, and the new text whole; the answer by what its reader sees."""
    policy = history.policy
    unseen = policy.thinking.mode is Mode.MONITOR or history.goes is ReasoningField.STRIP
    for hearing in history.hearings:
        asked = hearing.asked
        sides = [(asked.thinking, "T"), (asked.answer, "A")]
        if asked.phase is Phase.ANSWERING and unseen:
            if known(asked.thinking):
                yield f"audit {asked.id} of the answer was shown thinking that nobody sees"
            sides = sides[1:]
        for text, phase in sides:
            if not explains(text, _tape(history, asked.choice, phase), policy.messages.redaction, whole=False):
                yield f"audit {asked.id} was shown {text!r} of {_tape(history, asked.choice, phase)!r}"
        judged = asked.thinking[: asked.judged_thinking] + asked.answer[: asked.judged_answer]
        for char in known(judged):
            if history.cells[char].enforced and history.standing(char, hearing.at) not in ("pass", "unaudited"):
                yield f"audit {asked.id} takes {char!r} for judged"
        if asked.phase is Phase.ANSWERING and not unseen and hearing.new:
            yield from _thinking_before(history, hearing)


def _thinking_before(history: History, hearing: Hearing) -> Iterator[str]:
    """All thinking that was said before the answer in question is shown with it, or redacted."""
    first = history.cells[hearing.new[0]].event
    shown = set(known(hearing.asked.thinking))
    for char, cell in history.cells.items():
        if cell.choice == hearing.choice and cell.phase == THINKING and cell.event < first and char not in shown:
            if history.standing(char, hearing.at) == "hit" or not cell.enforced:
                continue
            yield f"audit {hearing.asked.id} judges an answer without the thinking {char!r}"
            return


def audits_fit_and_come_one_by_one(history: History) -> Iterator[str]:
    """One audit a choice in flight; the new text of each fits beside the prompt."""
    for index in range(history.case.choices):
        own = [hearing for hearing in history.hearings if hearing.choice == index]
        for earlier, later in itertools.pairwise(own):
            if later.at < earlier.answered:
                yield f"two audits of choice {index} at once"
    for hearing in history.hearings:
        asked = hearing.asked
        new = asked.thinking[asked.judged_thinking :] + asked.answer[asked.judged_answer :]
        if asked.phase is Phase.ANSWERING:
            new = asked.answer[asked.judged_answer :]
        size = len(new.replace(history.policy.messages.redaction, "").encode())
        if size > history.case.capacity:
            yield f"audit {asked.id} takes {size} bytes of {history.case.capacity}"


def flags_and_failures_are_announced(history: History) -> Iterator[str]:
    """Before the text, once a choice and kind; and nothing of the guard where the policy doesn't expose it."""
    notes: dict[tuple[int, str], int] = {}
    for number, frame in enumerate(history.frames):
        if "guardtrace" in frame.content and not history.policy.expose.object:
            yield "the guard shows itself"
        if frame.kind == "note":
            key = frame.choices[0]["index"], frame.content["guardtrace"]["action"]
            if key in notes:
                yield f"{key} was announced twice"
            notes.setdefault(key, number)
    if not history.policy.expose.object or history.case.whole is not None:
        return
    for number, frame in enumerate(history.frames):
        for char in frame.betrays:
            cell = history.cells.get(char)
            if cell is None or not cell.enforced:
                continue
            kind = "release" if history.standing(char, frame.at) == "unaudited" else None
            kind = "flag" if _was_flagged(history, char, frame.at) else kind
            if kind and notes.get((cell.choice, kind), number) >= number:
                yield f"{char!r} left without the note {kind!r}"


def tool_calls_are_never_completed_by_a_cut(history: History) -> Iterator[str]:
    """Arguments pass as they came; at a cut there is no end of them that the upstream's text didn't bring."""
    for index in range(history.case.choices):
        whole = index not in history.cuts and not history.stopped
        received = history.channels(index)
        for channel in {text.channel for _, part in history.parts_of(index) for text in part.texts}:
            if not channel.startswith("call "):
                continue
            said = history.sent_channel(index, channel)
            if received.get(channel, "") != said and (whole or not said.startswith(received.get(channel, ""))):
                yield f"{channel} of choice {index} is {received.get(channel)!r}, was {said!r}"


def a_redaction_of_arguments_cuts(history: History) -> Iterator[str]:
    """Nothing can stand in their place, so a choice whose call has a hit in it ends there, whatever of it had left."""
    if history.policy.decision.confirmations > 1:
        return
    for hearing in history.hearings:
        if hearing.action is not Action.REDACT or hearing.answered == NEVER or hearing.choice in history.cuts:
            continue
        cells = [history.cells[char] for char in hearing.new]
        calls = [cell.char for cell in cells if cell.enforced and cell.text.path[0] == "tool_calls"]
        if calls and not history.stopped:
            yield f"choice {hearing.choice} went on behind {calls} in a call, which audit {hearing.asked.id} took out"


PROMISES = (
    nothing_leaves_without_its_verdict,
    hidden_thinking_stays_hidden,
    lag_keeps_its_bound,
    text_stands_where_it_may,
    what_a_client_adds_up_is_what_was_said,
    one_placeholder_a_run,
    audits_show_the_whole_reply,
    audits_fit_and_come_one_by_one,
    flags_and_failures_are_announced,
    tool_calls_are_never_completed_by_a_cut,
    a_redaction_of_arguments_cuts,
)


def explains(visible: str, said: str, placeholder: str, *, whole: bool) -> bool:
    """Whether a text is ``said``, or a beginning of it, with some stretches replaced by placeholders."""
    first, *rest = visible.split(placeholder)
    if not said.startswith(first):
        return False
    end, open_end = len(first), False
    for number, part in enumerate(rest):
        last = number == len(rest) - 1
        if last and not part:
            open_end = end < len(said)
            end = len(said)
            return open_end
        at = said.rfind(part, end + 1) if last and whole else said.find(part, end + 1)
        if at < 0:
            return False
        end = at + len(part)
    return end == len(said) or not whole


# Inside


def _cells(history: History, part: Part) -> list[Cell]:
    return [history.cells[char] for text in part.texts for char in known(text.text)]


def _is_ahead(history: History, cells: list[Cell], at: int) -> bool:
    """Whether a part has left by the end of this write and none of it has a verdict."""
    if any(history.standing(cell.char, at) is not None for cell in cells):
        return False
    return any(history.first_betrayed.get(cell.char, at + 1) <= at for cell in cells)


def _first_redaction(history: History, choice: int) -> int:
    """When a verdict first took something out of this choice for certain."""
    if history.policy.decision.confirmations > 1:
        return 1 << 60
    times = [
        hearing.answered
        for hearing in history.hearings
        if hearing.choice == choice
        and hearing.action in (Action.REDACT, Action.CUT)
        and any(history.cells[char].enforced for char in hearing.new)
    ]
    return min(times, default=1 << 60)


def _was_flagged(history: History, char: str, at: int) -> bool:
    """Whether the verdict that let a character go was the last on it and said ``flag``."""
    heard = [each for each in history.hearings if each.answered < at and char in each.new]
    return bool(heard) and heard[-1].action is Action.FLAG


def _channels(history: History, cell: Cell) -> tuple[str, ...]:
    if cell.phase == THINKING and history.goes is not ReasoningField.AS_IS:
        return (history.goes.value,)
    return (cell.text.channel, *(str(path[0]) for path in cell.text.copies))


def _kind(channel: str) -> str:
    return THINKING if channel.startswith(("reasoning", "thinking")) else channel


def _expected(history: History, index: int, channel: str) -> str:
    if history.goes is ReasoningField.AS_IS:
        return history.sent_channel(index, channel)
    if channel == history.goes.value:
        return _tape(history, index, THINKING)
    return history.sent_channel(index, channel, "Aa") if channel == "content" else ""


def _tape(history: History, index: int, phase: str) -> str:
    return "".join(
        "".join(char for char, its in zip(text.text, text.phases, strict=True) if its == phase)
        for _, part in history.parts_of(index)
        for text in part.texts
    )


def _is_odd(history: History, index: int) -> bool:
    """Whether one phase spreads over several channels, or over one in which no placeholder can stand."""
    found: dict[str, set[str]] = {}
    for _, part in history.parts_of(index):
        for text in part.texts:
            for phase in set(text.phases):
                if not text.channel.startswith("call "):
                    found.setdefault(phase, set()).add(text.channel)
    return any(len(channels) > 1 for channels in found.values())


def _is_untouched(history: History, frame: Frame, index: int) -> bool:
    """Whether a choice in a rewritten event says all that it said."""
    said = history.shown(index, frame)
    if frame.rewrites is None:
        return any(_says(part) == set(said) for _, part in history.parts_of(index))
    shown = {char for _, text in said for char in known(text)}
    parts = [part for part in history.case.events[frame.rewrites].parts if part.index == index]
    return all(set(known(text.text)) <= shown for part in parts for text in part.texts if text.channel != "logprobs")


def _says(part: Part) -> set[tuple[str, str]]:
    texts = [text for text in part.texts if text.channel != "logprobs"]
    return {(channel_of(path), text.text) for text in texts for path in (text.path, *text.copies)}
