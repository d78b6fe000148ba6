"""The local auditor: a Qwen2.5-VL checkpoint run by transformers, on a CPU or a GPU.

One worker thread reads for all sessions together. The system prompt is read once, the images and the query once a
session, and of the trace each audit reads only what is new and the few tokens behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio.to_thread
import torch

from guardtrace_proxy.auditor import BUILT_IN
from guardtrace_proxy.auditor.checkpoint import Checkpoint, load_checkpoint
from guardtrace_proxy.auditor.context import DEFAULT_CONTEXT, JOINT_TOKENS, check_context, prompt_tokens, query_tokens
from guardtrace_proxy.auditor.inference import ImageFeatures, Inference, Piece
from guardtrace_proxy.auditor.kept import KeptReadings
from guardtrace_proxy.auditor.labels import LabelRead, LabelTokens, likeliest
from guardtrace_proxy.auditor.layout import Layout, Stretches
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Trace, user_text
from guardtrace_proxy.auditor.protocol import (
    AuditorFailure,
    Depth,
    DoesNotFit,
    FailureKind,
    others_are_broken,
)
from guardtrace_proxy.auditor.reading import Reading
from guardtrace_proxy.auditor.reply import GuardReply, UnreadableReply, judgment_place, parse_reply
from guardtrace_proxy.auditor.window import GAP, Window, check_shapes, fit_turns
from guardtrace_proxy.auditor.worker import Audit, Worker
from guardtrace_proxy.policy.levels import Probabilities, Verdict

KV_CACHE_BYTES = 4 << 30
"""Keys and values of all sessions together: some 115,000 tokens of the published model in bfloat16."""
PASS_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens of one forward pass: beyond it more audits at once make all of them slower and none cheaper."""

T = TypeVar("T")


class TransformersAuditor:
    """A checkpoint in this process. See :class:`guardtrace_proxy.auditor.protocol.Auditor`."""

    def __init__(
        self,
        model: str,
        *,
        annotate_max_tokens: int = 512,
        max_context: int | None = None,
        kv_cache_bytes: int | None = None,
        system_prompt: str | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.name = model
        self.kept = KeptReadings(KV_CACHE_BYTES if kv_cache_bytes is None else kv_cache_bytes)
        self.warnings: tuple[str, ...] = tuple(warnings)
        self.annotate_max_tokens = annotate_max_tokens
        self._max_context = max_context
        self.escalate_at: float | None = None
        self._system_prompt = system_prompt
        self.worker: Worker | None = None
        """None until a checkpoint was loaded."""

    async def start(self) -> None:
        await anyio.to_thread.run_sync(self._load)

    def _load(self) -> None:
        checkpoint = load_checkpoint(self.name)
        self.use(checkpoint)

    def use(self, checkpoint: Checkpoint) -> None:
        """Run on a checkpoint that is loaded already."""
        self.checkpoint = checkpoint
        self.inference = Inference(checkpoint)
        self.layout = Layout(checkpoint.processor)
        self.labels = LabelTokens.of(self.layout)
        calibration = checkpoint.calibration
        self.temperature = 1.0 if calibration is None else calibration.temperature
        self.escalate_at = None if calibration is None else calibration.escalate_at
        self.system_prompt = self._system_prompt or checkpoint.system_prompt or SYSTEM_PROMPT
        self.max_context = min(
            self._max_context or DEFAULT_CONTEXT,
            checkpoint.max_context or checkpoint.model.config.get_text_config().max_position_embeddings,
        )
        check_context(self.max_context)
        if self.name == BUILT_IN or checkpoint.purpose == "demonstration":
            warning = f"auditor {self.name} is for demonstration and tests: it doesn't protect people"
            self.warnings += (f"{warning}. Set auditor.model to a real guard model",)

        passes = PASS_TOKENS.get(checkpoint.device.type, PASS_TOKENS["cuda"])
        self.worker = worker = Worker(self.inference.forward, passes, lambda: not self.kept.is_full, self.make_room)
        self._trunk = worker.submit(self._read_trunk()).result()

    def _read_trunk(self) -> Audit[Reading]:
        """What every prompt begins with."""
        trunk = self.inference.begin()
        yield from self.inference.read(trunk, self.layout.prompt(self.system_prompt, "", []), None, 1)
        return trunk

    def branch(self, ids: Sequence[int]) -> Reading:
        """A new session's reading: what its prompt has in common with all others."""
        return self._trunk.head(self._trunk.common(ids))

    def make_room(self) -> None:
        """After a pass that broke, perhaps for lack of memory; in the worker's thread."""
        self.kept.clear()
        if self.checkpoint.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt may have."""
        return prompt_tokens(self.max_context, self.annotate_max_tokens)

    def measures(self) -> dict[str, float]:
        """What is kept of running replies, and how much of it may be."""
        kept = self.kept
        return {"kv_bytes": kept.nbytes, "kv_bytes_limit": kept.most_bytes, "kv_dropped_total": kept.dropped}

    async def open(self, query: Query) -> TransformersSession:
        with others_are_broken():
            # waited for whatever the caller's time, which a request may use up: that it doesn't fit is to be told
            session = await anyio.to_thread.run_sync(TransformersSession, self, query)
            await session.see()
        return session

    async def run(self, audit: Audit[T]) -> T:
        """Have the worker run it. Cancelling returns at once; the audit ends before its next pass.

        Raises:
            AuditorFailure: it raised something that isn't an AuditorError.
        """
        assert self.worker is not None
        return await asyncio.wrap_future(self.worker.submit(audit))

    async def aclose(self) -> None:
        if self.worker is not None:
            self.worker.close()
            await anyio.to_thread.run_sync(self.worker.join)


def _at_once(work: Callable[[], T], make_room: Callable[[], None]) -> Generator[Piece, torch.Tensor, T]:
    """An audit that reads nothing. Where the work breaks it is done once more, as a pass is, when memory was freed."""
    with suppress(Exception):
        return work()
    with suppress(Exception):  # of a device that is gone this raises too
        make_room()
    return work()
    yield


class TransformersSession:
    """One query under audit. Made in a thread of its own, since encoding a long conversation takes a while; then it has
    to see its images."""

    def __init__(self, auditor: TransformersAuditor, query: Query) -> None:
        self._auditor = auditor
        self._stretches: Stretches = {}
        self._images: ImageFeatures | None = None
        self._pixels = self._prepare_images(query)
        self._image_tokens = auditor.inference.token_counts(self._pixels[1]) if self._pixels else []
        limit = query_tokens(auditor.prompt_tokens)
        most_bytes = auditor.layout.most_bytes(limit)
        self._query = fit_turns(query.turns, lambda text: self._size(text) <= limit, most_bytes)
        room = auditor.prompt_tokens - self._size(self._query) - JOINT_TOKENS
        self.capacity = max(1, room // auditor.layout.most_tokens_per_byte)
        self._window = Window()
        self._closed = False

    async def see(self) -> None:
        """Encode the images; before the first audit."""
        if self._pixels is not None:
            (pixels, grid), self._pixels = self._pixels, None
            encode, make_room = self._auditor.inference.encode_images, self._auditor.make_room
            self._images = await self._auditor.run(_at_once(lambda: encode(pixels, grid), make_room))

    def _prepare_images(self, query: Query) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not query.images:
            return None
        check_shapes(query.images)
        inference = self._auditor.inference
        pixels, grid = inference.image_grid([image.pixels for image in query.images])
        if sum(inference.token_counts(grid)) > self._auditor.prompt_tokens // 2:
            raise DoesNotFit("messages", "the images are more than the auditor's context takes: send fewer")
        return pixels, grid

    def _size(self, query: str) -> int:
        """Tokens of the prompt before any trace."""
        return len(self._prompt(query, GAP, GAP, self._auditor.labels.opening))

    def _prompt(self, query: str, thinking: str, answer: str, opening: Sequence[int] | None) -> list[int]:
        layout, system = self._auditor.layout, self._auditor.system_prompt
        return layout.prompt(system, user_text(query, thinking, answer), self._image_tokens, opening, self._stretches)

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        audit = self._label if depth is Depth.LABEL else self._annotate
        return await self._auditor.run(audit(trace))

    async def aclose(self) -> None:
        self._closed = True
        self._images = None
        self._auditor.kept.forget(self)

    @contextmanager
    def _reading(self, ids: Sequence[int]) -> Iterator[Reading]:
        """What was read for earlier audits."""
        kept = self._auditor.kept
        reading = kept.borrow(self, lambda: self._auditor.branch(ids))
        try:
            yield reading
        finally:
            kept.give_back(self)
            if self._closed:
                kept.forget(self)

    def _place(self, trace: Trace, opening: Sequence[int] | None) -> list[int]:
        def build(thinking: str, answer: str) -> list[int] | None:
            ids = self._prompt(self._query, thinking, answer, opening)
            return ids if len(ids) <= self._auditor.prompt_tokens else None

        return self._window.place(trace, build)

    def _label(self, trace: Trace) -> Audit[Verdict]:
        began = time.perf_counter()
        auditor, labels = self._auditor, self._auditor.labels
        ids = self._place(trace, labels.opening)
        with self._reading(ids) as reading:
            logits = yield from auditor.inference.read(reading, [*ids, labels.zero], self._images, 2)
        probabilities = self._read(self._first_read(logits[0]), logits[1], auditor.temperature)
        return Verdict(likeliest(probabilities), probabilities, depth=Depth.LABEL.value, milliseconds=_since(began))

    def _annotate(self, trace: Trace) -> Audit[Verdict]:
        began = time.perf_counter()
        ids = self._place(trace, None)
        with self._reading(ids) as reading:
            written, rows, ended = yield from self._write(reading, ids)
            try:
                reply = parse_reply(self._auditor.layout.decode(written), truncated=not ended)
            except UnreadableReply as error:
                raise AuditorFailure(FailureKind.UNREADABLE, str(error)) from error
            probabilities = yield from self._at_judgment(reading, len(ids), written, rows, reply)
        return Verdict(reply.level, probabilities, reply.analysis, milliseconds=_since(began))

    def _write(self, reading: Reading, ids: Sequence[int]) -> Audit[tuple[list[int], list[torch.Tensor], bool]]:
        """Greedily: the tokens, at each of them P(0), P(0.5) and P(1), and whether the model came to an end."""
        auditor = self._auditor
        logits = yield from auditor.inference.read(reading, ids, self._images, 1)
        written: list[int] = []
        rows: list[torch.Tensor] = []
        most = min(auditor.annotate_max_tokens, auditor.max_context - len(ids))
        while len(written) < most:
            row = logits[-1]
            token = int(row.argmax())
            if token in auditor.checkpoint.end_ids:
                return written, rows, True
            rows.append(self._first_read(row))
            written.append(token)
            logits = yield from auditor.inference.extend(reading, [token])
        return written, rows, False

    def _at_judgment(
        self, reading: Reading, prompt: int, written: Sequence[int], rows: Sequence[torch.Tensor], reply: GuardReply
    ) -> Audit[Probabilities | None]:
        """The labels' probabilities where the written judgment stands; None where they can't be read there, or say
        something else: then it was a place where a judgment is quoted."""
        auditor = self._auditor
        index = judgment_place(written, reply, auditor.labels.first(reply.level), auditor.layout.decode)
        if index is None:
            return None
        reading.rewind(prompt + index)
        [after_zero] = yield from auditor.inference.extend(reading, [auditor.labels.zero])
        try:
            probabilities = self._read(rows[index], after_zero)
        except AuditorFailure:
            return None
        return probabilities if likeliest(probabilities) is reply.level else None

    def _first_read(self, logits: torch.Tensor) -> torch.Tensor:
        """P(0), P(0.5) and P(1) as the next token: [3]."""
        labels = self._auditor.labels
        return logits.softmax(-1)[[labels.zero, labels.half, labels.one]]

    def _read(self, first: torch.Tensor, after_zero: torch.Tensor, temperature: float = 1.0) -> Probabilities:
        labels = self._auditor.labels
        zero, half, one = (float(value) for value in first)
        second = after_zero.softmax(-1)
        end = float(second[sorted(self._auditor.checkpoint.end_ids)].sum())
        read = LabelRead(zero, half, one, dot=float(second[labels.half]), end=end)
        return read.probabilities(shared=labels.shared, temperature=temperature)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
