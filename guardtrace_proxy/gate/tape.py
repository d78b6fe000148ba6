"""The tape of one choice: what arrived, what has its verdict, what was redacted, and what the auditor is shown."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from guardtrace_proxy.gate.overlay import Overlay
from guardtrace_proxy.wire.events import Phase, Segment

MAX_JUDGED_CHARS = 262_144
"""Judged text kept for the auditor, in characters a phase; the oldest half goes when it is passed. An auditor's own
context is smaller, so this only bounds memory."""

BYTES_A_PIECE = 320
BYTES_A_CHARACTER = 4
"""What waiting text takes of memory, at most: each piece (300 in CPython 3.11), and each of its characters."""

GAP = "[…]"
_end = attrgetter("end")


class Waiting(NamedTuple):
    """A segment without a verdict. Offsets count characters of the tape."""

    start: int
    end: int
    segment: Segment
    tokens: int
    since: float


class Chunk(NamedTuple):
    """What one audit takes: waiting text of one phase, up to the tape offset ``end``."""

    phase: Phase
    text: str
    end: int
    tokens: int
    since: float
    entries: int


class Block(NamedTuple):
    """An inline thinking block on the tape. ``start`` is -1 where the prompt's template opened it."""

    start: int
    end: int | None
    close: str


def _share(tokens: int, length: int, of: int) -> int:
    """How many of the tokens of ``of`` characters belong to the first ``length``."""
    return max(1, tokens * length // of) if tokens and length else 0


class Tape:
    """Positions grow; ``judged`` ≤ ``asked`` ≤ ``end``. Text up to ``judged`` has its verdict, and an auditor was asked
    about text up to ``asked``."""

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay
        self.waiting: list[Waiting] = []
        """What has no verdict yet, in order."""
        self.end = 0
        self.judged = 0
        self.judged_tokens = 0
        self.waiting_tokens = 0
        self._asked = 0
        self._asked_tokens = 0
        """Tokens that wait and that an auditor was asked about."""
        self._blocks: list[Block] = []
        self._shown: dict[Phase, list[str]] = {Phase.THINKING: [], Phase.ANSWERING: []}
        self._shown_chars: dict[Phase, int] = {Phase.THINKING: 0, Phase.ANSWERING: 0}
        self._carried_tokens = 0
        """Tokens that came without text that is certain: they count with the next."""
        self._last_phase: Phase | None = None
        self._last_phase_start = 0

    def push(self, segments: list[Segment], tokens: int, now: float) -> None:
        """Append segments that became certain; their tokens are shared out by length among those that aren't tags."""
        tokens += self._carried_tokens
        chars = sum(len(segment.text) for segment in segments if not segment.tag)
        for segment in segments:
            start = self.end
            self.end = end = start + len(segment.text)
            if segment.close is not None:
                self._follow_block(segment, start, end)
            if self.overlay.displaces:
                self.overlay.place(segment, start, end)
            if segment.tag or segment.phase is not self._last_phase:
                self._last_phase_start = start
            self._last_phase = None if segment.tag else segment.phase
            counted = 0
            if not segment.tag:
                counted = _share(tokens, end - start, chars)
                chars -= end - start
            self.waiting.append(Waiting(start, end, segment, counted, now))
            self.waiting_tokens += counted
            tokens -= counted
        self._carried_tokens = tokens

    def _follow_block(self, segment: Segment, start: int, end: int) -> None:
        block = self._blocks[-1] if self._blocks else None
        if block is not None and block.end is None:
            if segment.tag and segment.text == segment.close:
                self._blocks[-1] = block._replace(end=end)
            return
        if segment.close is None:
            return
        opened_by_template = not segment.tag
        self._blocks.append(Block(-1 if opened_by_template else start, None, segment.close))

    def open_block(self, released: int) -> str | None:
        """The closing tag that the client still waits for, when it has the tape up to ``released``."""
        if self.overlay.displaces:
            return None
        for block in self._blocks:
            if released > block.start and (block.end is None or released < block.end):
                return block.close
        return None

    def skip_tags(self) -> None:
        """Tags are no text: they count as judged as soon as everything before them is."""
        count = 0
        for entry in self.waiting:
            if not entry.segment.tag:
                break
            self._pass(entry)
            count += 1
        if count:
            del self.waiting[:count]

    def phase_changes(self) -> bool:
        """Whether a tag or text of another phase waits behind the text that waits first."""
        return self._last_phase_start > self.judged

    def goes_on(self, phase: Phase, close: str | None) -> bool:
        """Whether text of this phase and block stands last and waits, so that more of it would only make it longer."""
        if not self.waiting or self._carried_tokens:
            return False
        last = self.waiting[-1].segment
        return last.phase is phase and last.close == close and not last.tag

    def next_chunk(self, capacity: int, reach: int) -> Chunk:
        """Waiting text of the first phase, up to ``reach``, that fits into ``capacity`` UTF-8 bytes; at least one
        character."""
        self._split(reach)
        first = self.waiting[0]
        phase, inline = first.segment.phase, first.segment.close is not None
        texts: list[str] = []
        size = tokens = count = 0
        end = first.start
        for entry in self.waiting:
            if entry.segment.tag or entry.segment.phase is not phase:
                break
            if (entry.segment.close is not None) is not inline or entry.start >= reach:
                break
            size += len(entry.segment.text.encode("utf-8", "surrogatepass"))
            if size > capacity:
                break
            texts.append(entry.segment.text)
            tokens += entry.tokens
            end = entry.end
            count += 1
        if count:
            return Chunk(phase, "".join(texts), end, tokens, first.since, count)
        head = first.segment.text.encode("utf-8", "surrogatepass")[:capacity].decode("utf-8", "ignore")
        self._split(first.start + max(1, len(head)))
        return self.next_chunk(capacity, reach)

    def behind(self, offset: int) -> int:
        """The index of the first waiting segment that ends behind ``offset``."""
        return bisect_right(self.waiting, offset, key=_end)

    def waiting_bytes(self, offset: int) -> int:
        """What text that waits and ends at ``offset`` at the latest takes of memory, at most."""
        if offset <= self.judged or not self.waiting:
            return 0
        # Where all has left, as is usual in mode ``monitor``, nothing is searched.
        pieces = len(self.waiting) if offset >= self.end else self.behind(offset)
        return pieces * BYTES_A_PIECE + (offset - self.judged) * BYTES_A_CHARACTER

    def _split(self, offset: int) -> None:
        """Make ``offset`` a border between two waiting segments."""
        at = self.behind(offset)
        if at == len(self.waiting) or self.waiting[at].start >= offset:
            return
        start, end, segment, tokens, since = self.waiting[at]
        length = offset - start
        share = _share(tokens, length, len(segment.text))
        self.waiting[at : at + 1] = [
            Waiting(start, offset, segment._replace(text=segment.text[:length]), share, since),
            Waiting(offset, end, segment._replace(text=segment.text[length:]), tokens - share, since),
        ]

    def shown(self, phase: Phase) -> str:
        """What the auditor has judged of a phase, with redactions in the place of what was redacted."""
        return "".join(self._shown[phase])

    # Fresh: text that waits and that no auditor was asked about

    @property
    def fresh_tokens(self) -> int:
        """How many tokens are fresh."""
        return self.waiting_tokens - self._asked_tokens

    @property
    def fresh_since(self) -> float | None:
        """When the oldest fresh text came; None where there is none."""
        # Asked for at every event, so nothing is searched where nothing can be found.
        at = self.behind(self._asked) if self._asked_tokens else 0
        return self.waiting[at].since if at < len(self.waiting) else None

    @property
    def fresh_start(self) -> int:
        """The offset at which fresh text begins."""
        return max(self.judged, self._asked)

    @property
    def fresh_text(self) -> str:
        """All fresh text, tags included."""
        return "".join(entry.segment.text for entry in self.waiting[self.behind(self._asked) :])

    def ask(self, chunk: Chunk) -> int:
        """An audit takes this chunk; returns how many of its tokens were fresh until now."""
        fresh = chunk.tokens - self._asked_tokens
        self._asked, self._asked_tokens = chunk.end, chunk.tokens
        return fresh

    def forget_waiting(self) -> None:
        """No verdict on it matters any more."""
        self.waiting.clear()

    # What verdicts do

    def can_grow(self, chunk: Chunk, ended: bool) -> bool:
        """Whether text of the chunk's phase waits behind it, or could still come."""
        if chunk.entries == len(self.waiting):
            return not ended
        follower = self.waiting[chunk.entries].segment
        return follower.phase is chunk.phase and not follower.tag

    def pass_chunk(self, chunk: Chunk) -> None:
        """The verdict lets the chunk go."""
        self._take(chunk)
        self._show(chunk.phase, chunk.text)

    def redact_chunk(self, chunk: Chunk, unseen: int) -> None:
        """The verdict redacts the chunk, whose text from ``unseen`` on hasn't left: one placeholder for each run,
        however many chunks it spans."""
        start = max(self.judged, unseen)
        self._take(chunk)
        if start >= chunk.end or self.overlay.redact(start, chunk.end, chunk.phase):
            self._show(chunk.phase, self.overlay.placeholder)

    def redact_parts(self, chunk: Chunk, parts: Sequence[tuple[int, int]], remains: str, unseen: int) -> None:
        """Redact stretches of the chunk's text, so that ``remains`` is what is left of it."""
        start = self.judged
        self._take(chunk)
        for first, last in parts:
            if start + last > unseen:
                self.overlay.redact(max(start + first, unseen), start + last, chunk.phase)
        self._show(chunk.phase, remains)

    def _take(self, chunk: Chunk) -> None:
        for entry in self.waiting[: chunk.entries]:
            self._pass(entry)
        del self.waiting[: chunk.entries]

    def _pass(self, entry: Waiting) -> None:
        self.judged = entry.end
        if entry.end <= self._asked:
            self._asked_tokens -= entry.tokens
        self.judged_tokens += entry.tokens
        self.waiting_tokens -= entry.tokens

    def _show(self, phase: Phase, text: str) -> None:
        self._shown[phase].append(text)
        self._shown_chars[phase] += len(text)
        if self._shown_chars[phase] <= MAX_JUDGED_CHARS:
            return
        kept = self.shown(phase)[-MAX_JUDGED_CHARS // 2 :]
        self._shown[phase] = [GAP, kept]
        self._shown_chars[phase] = len(GAP) + len(kept)
