"""How upstreams write their thinking, and the texts of one choice in each of these dialects."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.properties.alphabet import Alphabet, Mark
from tests.properties.draws import Draw
from tests.properties.sent import ANSWER, OTHER_TAG, TAG, THINKING, Part, Path, Text

FILLERS = ("", "", "", " ", ". ", "a ", "word ", "! ", "\n", "<", "</thi", "<an", '\\"')


@dataclass(frozen=True)
class Dialect:
    """``fields`` carry thinking, the first with copies in the others; without any it stands between ``tags``."""

    name: str
    fields: tuple[str, ...] = ()
    tags: tuple[str | None, str] | None = None
    kind: Literal["auto", "field", "inline", "custom"] = "auto"
    starts_open: bool = False
    answer_tags: bool = False
    shows_opening: bool = True
    """Whether the opening tag is written. Where it isn't, text before the closing one was answer, unless the block
    ``starts_open``."""

    def style(self) -> ThinkingStyle:
        custom = self.tags if self.kind == "custom" and self.tags else (None, None)
        return ThinkingStyle(self.kind, self.starts_open, *custom)


THINK = ("<think>", "</think>")
DIALECTS = (
    Dialect("reasoning", ("reasoning",)),
    Dialect("reasoning, tags are text", ("reasoning",), kind="field"),
    Dialect("reasoning_content", ("reasoning_content",)),
    Dialect("both", ("reasoning", "reasoning_content")),
    Dialect("details", ("reasoning", "reasoning_details")),
    Dialect("details alone", ("reasoning_details",)),
    Dialect("ollama", ("thinking",)),
    Dialect("think", (), THINK),
    Dialect("think, inline", (), THINK, "inline"),
    Dialect("think, opened by the template", (), THINK, starts_open=True, shows_opening=False),
    Dialect("think, opening tag missing", (), THINK, shows_opening=False),
    Dialect("kimi", (), ("◁think▷", "◁/think▷")),
    Dialect("glm", (), THINK, answer_tags=True),
    Dialect("custom", (), ("[THINK]", "[/THINK]"), "custom"),
    Dialect("apriel", (), (None, "[BEGIN FINAL RESPONSE]"), "custom", starts_open=True, shows_opening=False),
)


class Writing:
    """Draws texts. ``wicked``: how many characters in a hundred are potentially harmful, and as many harmful ones, …"""

    def __init__(self, draw: Draw, dialect: Dialect, alphabet: Alphabet, wicked: int) -> None:
        self.draw = draw
        self.dialect = dialect
        self.wicked = wicked
        self.long = draw.chance(15)
        self._alphabet = alphabet

    def text(self, fillers: tuple[str, ...] = FILLERS) -> str:
        many = self.draw.number(1, 40 if self.long else 6)
        return "".join(self.char() + self.draw.pick(*fillers) for _ in range(many))

    def char(self) -> str:
        number = self.draw.number(0, 99)
        marks = (Mark.HARM, Mark.MAYBE, Mark.PAIR, Mark.UNSURE, Mark.RARE)
        for position, mark in enumerate(marks, 1):
            if number >= 100 - position * self.wicked:
                return self._alphabet.new(mark)
        return self._alphabet.new(Mark.SAFE)

    def pieces(self, length: int) -> list[tuple[int, int]]:
        """Where a text is cut into tokens."""
        borders = [0]
        longest = self.draw.pick(4, 2, 12, 40)
        while borders[-1] < length:
            borders.append(min(length, borders[-1] + self.draw.number(1, longest)))
        return list(itertools.pairwise(borders))


def beats_of_choice(writing: Writing, index: int) -> list[Part]:
    """All parts of one choice, its finish included."""
    draw, dialect = writing.draw, writing.dialect
    beats: list[Part] = []
    blocks = draw.pick("TA", "TA", "TA", "A", "TATA", "T", "TAT", "")
    inline = _inline(writing, blocks) if dialect.tags else []
    beats += [Part(index, [text]) for text in inline]
    if not dialect.tags:
        for block in blocks:
            texts = _thinking(writing) if block == THINKING else _answer(writing, bool(beats))
            _append(draw, beats, index, texts)
    if draw.chance(15):
        beats += _calls(writing, index)
    finish = draw.pick("stop", "length", "tool_calls")
    if beats and draw.chance(25):
        beats[-1].finish = finish
    else:
        beats.append(Part(index, [], finish, empty=draw.pick({}, {"content": ""}, {"content": None})))
    if draw.chance(3) and not dialect.tags:
        # Text behind its finish: no server should, so one will.
        beats.append(Part(index, [_plain(("content",), writing.text(("",)), ANSWER)]))
    return beats


def _append(draw: Draw, beats: list[Part], index: int, texts: list[list[Text]]) -> None:
    """The parts of a block; its first now and then in one event with the last of the block before."""
    if beats and texts and draw.chance(15):
        said = {path for text in beats[-1].texts for path in (text.path, *text.copies)}
        if not said & {path for text in texts[0] for path in (text.path, *text.copies)}:
            beats[-1].texts += texts.pop(0)
    beats += [Part(index, each) for each in texts]


def _plain(path: Path, text: str, phase: str, copies: tuple[Path, ...] = ()) -> Text:
    return Text(path, text, phase * len(text), copies)


def _thinking(writing: Writing) -> list[list[Text]]:
    text = writing.text()
    paths: list[Path] = [
        (field, 0, "text") if field == "reasoning_details" else (field,) for field in writing.dialect.fields
    ]
    first, *copies = paths
    found: list[list[Text]] = []
    for start, end in writing.pieces(len(text)):
        if copies and copies[0] == ("reasoning_content",) and writing.draw.chance(5):
            # Two fields that don't say the same: then both say something.
            found.append([_plain(path, writing.text(("",)), THINKING) for path in paths])
        found.append([_plain(first, text[start:end], THINKING, tuple(copies))])
    return found


def _answer(writing: Writing, thought: bool) -> list[list[Text]]:
    draw = writing.draw
    tags_are_text = writing.dialect.kind == "field" or thought
    text = writing.text((*FILLERS, "<think>", "</think>") if tags_are_text else FILLERS)
    field = "refusal" if draw.chance(4) else "content"
    found = [[_plain((field,), text[start:end], ANSWER)] for start, end in writing.pieces(len(text))]
    if draw.chance(6):
        found[draw.number(0, len(found) - 1)].append(_plain(("vendor",), writing.text(("",)), ANSWER))
    return found


def _calls(writing: Writing, index: int) -> list[Part]:
    beats: list[Part] = []
    for position in range(writing.draw.number(1, 2)):
        where = ("tool_calls", position, "function")
        labels = {"index": position, "id": f"call_{position}", "type": "function"}
        beats.append(Part(index, [_plain((*where, "name"), "look" + writing.char(), ANSWER)], labels=labels))
        arguments = '{"at": "' + writing.text(("", " ", "the ")) + '"}'
        beats += [
            Part(index, [_plain((*where, "arguments"), arguments[start:end], ANSWER)], labels={"index": position})
            for start, end in writing.pieces(len(arguments))
        ]
    return beats


def _inline(writing: Writing, blocks: str) -> list[Text]:
    """The content with its tags, cut anywhere."""
    text = phases = ""
    assert writing.dialect.tags is not None
    opening, closing = writing.dialect.tags

    def add(more: str, phase: str) -> None:
        nonlocal text, phases
        text, phases = text + more, phases + phase * len(more)

    inside = writing.dialect.starts_open
    for number, block in enumerate(blocks):
        if block == THINKING:
            if number and opening is None:
                continue
            shown = opening is not None and (number > 0 or writing.dialect.shows_opening)
            if shown and opening is not None:
                add(opening, TAG)
            thinks = shown or inside
            add(writing.text(), THINKING if thinks else ANSWER)
            if number == len(blocks) - 1 and writing.draw.chance(50):
                break
            add(closing, TAG if thinks else OTHER_TAG)
            inside = False
        else:
            wrapped = writing.dialect.answer_tags
            add("<answer>" if wrapped and not inside else "", OTHER_TAG)
            # What follows a template's open tag is thinking, whatever it was meant to be.
            add(writing.text(), THINKING if inside else ANSWER)
            add("</answer>" if wrapped and not inside else "", OTHER_TAG)
    return [
        Text(("content",), text[start:end], phases[start:end], inline=True) for start, end in writing.pieces(len(text))
    ]
