"""Recorded or authored traces: what a thinking model was asked, thought and answered.

One JSON object a line: ``question``, ``thinking``, ``answer``, and optionally ``name`` (or ``id``), ``image`` (a path
beside the file), ``raw`` (the model's output with its own tags), ``thinking_sentences`` and ``onset_sentence`` (index
of the first unsafe one), ``answer_onset`` (the first unsafe character of the answer).
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

PIECE = re.compile(r"\s*\S+\s*$|\s*\S+|\s+$")
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
OPENING = re.compile(r"<think>|◁think▷")
CLOSING = re.compile(r"</think>|◁/think▷")


class TraceError(Exception):
    """A trace file that can't be read; the message names file, line and field."""


class TraceRow(msgspec.Struct):
    """One line of a trace file. Fields that a data set has beyond these are left alone."""

    question: str
    thinking: str
    answer: str = ""
    name: str | None = None
    id: str | None = None
    image: str | None = None
    raw: str | None = None
    thinking_sentences: list[str] | None = None
    onset_sentence: int | None = None
    answer_onset: int | None = None


class DemoTrace(msgspec.Struct, frozen=True):
    """A trace ready for replay. ``image`` is a data URL."""

    name: str
    question: str
    thinking: str
    answer: str
    image: str | None
    raw: str | None
    thinking_onset: int | None
    answer_onset: int | None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The request's messages."""
        if self.image is None:
            return [{"role": "user", "content": self.question}]
        parts = [
            {"type": "image_url", "image_url": {"url": self.image}},
            {"type": "text", "text": self.question},
        ]
        return [{"role": "user", "content": parts}]

    @property
    def names_onset(self) -> bool:
        """Whether the trace says where harm begins."""
        return self.thinking_onset is not None or self.answer_onset is not None

    @property
    def dialect(self) -> str:
        """``fields``, ``inline``, or ``open`` where the prompt's template opened the thinking tag."""
        if self.raw is None:
            return "fields"
        if CLOSING.search(self.raw) and not OPENING.search(self.raw):
            return "open"
        return "inline"


def tokens_in(text: str) -> int:
    """Tokens, counted as the proxy counts where it has no tokenizer: UTF-8 bytes / 4, rounded up, a piece at a time."""
    return sum(-(-len(piece.encode()) // 4) for piece in pieces(text))


def pieces(text: str) -> list[str]:
    """The text in pieces of about a word, which together are the text again."""
    return PIECE.findall(text)


def load_traces(path: Path) -> list[DemoTrace]:
    """All traces of a file; raises TraceError."""
    try:
        # Not splitlines: a string may hold U+2028, which ends a line there and none in JSON.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: can't be read ({error}). Expected UTF-8 JSON lines.") from error
    traces: dict[str, DemoTrace] = {}
    taken: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        trace = _parse(path, number, line)
        # The replaying upstream knows a trace by its name alone.
        if trace.name in traces:
            raise TraceError(f"{path}:{number}: the name {trace.name!r} is taken by line {taken[trace.name]}.")
        traces[trace.name], taken[trace.name] = trace, number
    if not traces:
        raise TraceError(f"{path}: holds no trace. Expected UTF-8 JSON lines.")
    return list(traces.values())


def pick(traces: Sequence[DemoTrace], sample: int | None, seed: int = 0) -> list[DemoTrace]:
    """A seeded sample, in file order; all of them without one."""
    if sample is None or sample >= len(traces):
        return list(traces)
    chosen = sorted(random.Random(seed).sample(range(len(traces)), sample))
    return [traces[index] for index in chosen]


def _parse(path: Path, number: int, line: str) -> DemoTrace:
    where = f"{path}:{number}"
    try:
        row = msgspec.json.decode(line, type=TraceRow)
    except msgspec.MsgspecError as error:
        raise TraceError(f"{where}: {error}. Expected an object with question, thinking and answer.") from error
    if row.answer_onset is not None and not 0 <= row.answer_onset < len(row.answer):
        raise TraceError(f"{where}: answer_onset {row.answer_onset} lies outside the answer.")
    return DemoTrace(
        name=row.name or row.id or f"{path.stem}-{number}",
        question=row.question,
        thinking=row.thinking,
        answer=row.answer,
        image=None if row.image is None else _data_url(path.parent / row.image, where),
        raw=row.raw,
        thinking_onset=_onset(row, where),
        answer_onset=row.answer_onset,
    )


def _onset(row: TraceRow, where: str) -> int | None:
    """The offset of the first unsafe sentence in the thinking."""
    if row.onset_sentence is None:
        return None
    sentences = row.thinking_sentences
    if sentences is None or not 0 <= row.onset_sentence < len(sentences):
        raise TraceError(f"{where}: onset_sentence {row.onset_sentence} needs that many thinking_sentences.")
    offset = 0
    for index, sentence in enumerate(sentences):
        offset = row.thinking.find(sentence, offset)
        if offset < 0:
            raise TraceError(f"{where}: thinking_sentences[{index}] doesn't occur in thinking.")
        if index == row.onset_sentence:
            return offset
        offset += len(sentence)
    return None


def _data_url(path: Path, where: str) -> str:
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise TraceError(f"{where}: image {path.name}: expected one of {', '.join(MEDIA_TYPES)}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{where}: image {path} can't be read ({error.strerror}).") from error
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
