"""What auditing one stream costs by its length: each token read once, beside reading all of it again at each audit.

``python -m benchmarks.audit_cost [--json] [--quick]``; with ``--vllm``, in vLLM's environment, on its engine. What is
measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command import parser, tell
from benchmarks.shapes import SHAPES, Shape, make_auditor, reasoning
from guardtrace_proxy.auditor.growing import common_length
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn, query_text, user_text
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind, Session

EVERY = 64
ASKED = "What should I do on Monday, and in which order?"


@dataclass(frozen=True)
class Row:
    """One stream. ``prefilled_tokens`` are those read for the trace, ``tail_tokens`` those behind it in each prompt."""

    length: int
    method: str
    seconds: float
    last_audit_seconds: float
    prefilled_tokens: int
    tail_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Method:
    """An auditor and how many tokens it has read.

    ``rereads``: each audit reads the query again, and so many tokens before it. ``unsaid``: tokens of the tail as the
    local auditor reads it that this one isn't given.
    """

    name: str
    auditor: Any
    tokens_read: Callable[[], int]
    rereads: int | None = None
    unsaid: int = 0

    async def follow(self, length: int) -> Row:
        """Audit one stream at every 64 tokens."""
        # asked otherwise for each length, so that no prefix cache knows the trace from the stream before
        query = Query([Turn("user", f"{length}: {ASKED}")])
        session = await self.auditor.open(query)
        await judge(session, Trace(""))
        traces = reasoning(self.auditor, length, EVERY)
        before, seconds = self.tokens_read(), []
        for number, thinking in enumerate(traces):
            judged = len(traces[number - 1]) if number else 0
            began = time.perf_counter()
            await judge(session, Trace(thinking, judged_thinking=judged))
            seconds.append(time.perf_counter() - began)
        await session.aclose()
        head, tail = around(self.auditor, query)
        again = 0 if self.rereads is None else self.rereads + head
        tail = (tail - self.unsaid) * len(traces)
        read = self.tokens_read() - before - again * len(traces) - tail
        return Row(length, self.name, sum(seconds), seconds[-1], read, tail, EVERY * len(traces))


async def judge(session: Session, trace: Trace) -> None:
    """One label read; random weights give the labels no mass, which is found out when all is computed."""
    try:
        await session.judge(trace, Depth.LABEL)
    except AuditorFailure as failure:
        if failure.kind is not FailureKind.UNSURE:
            raise


def around(auditor: Any, asked: Query) -> tuple[int, int]:
    """Tokens before a trace that aren't the system prompt's, and tokens behind it."""

    def prompt(query: str, thinking: str) -> list[int]:
        user = user_text(query, thinking, "")
        return [*auditor.layout.prompt(auditor.system_prompt, user, [], auditor.labels.opening), auditor.labels.zero]

    query = query_text(asked.turns)
    one, other = prompt(query, "Bread."), prompt(query, "Water!")
    before, behind = common_length(one, other), common_length(one[::-1], other[::-1])
    return before - common_length(one, prompt("Another", "Bread.")), behind


async def measure(methods: Sequence[Method], lengths: Sequence[int], reprefill_to: int) -> AsyncIterator[Row]:
    """A row for each length and method; each method's first stream isn't counted."""
    for method in methods:
        await method.follow(3 * EVERY)
        for length in lengths:
            if not method.name.endswith("reprefill") or length <= reprefill_to:
                yield await method.follow(length)


def local_methods(shape: Shape) -> list[Method]:
    """With no budget for keys and values nothing of a stream is kept, the system prompt all the same."""
    incremental, reprefill = make_auditor(shape), make_auditor(shape, kv_cache_bytes=0)
    return [
        Method("incremental", incremental, lambda: incremental.inference.tokens_read),
        Method("reprefill", reprefill, lambda: reprefill.inference.tokens_read, rereads=0),
    ]


def print_table(rows: Sequence[Row], console: Console) -> None:
    """The same for a reader."""
    table = Table(title=f"One stream, a label read every {EVERY} tokens", title_justify="left")
    for column in ("tokens", "method", "all audits s", "last audit ms", "trace tokens read each", "tail tokens"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            str(row.length),
            row.method,
            f"{row.seconds:.2f}",
            f"{row.last_audit_seconds * 1000:.1f}",
            f"{row.prefilled_tokens / row.reasoning_tokens:.2f}",
            str(row.tail_tokens),
        )
    console.print(table)


async def run(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    lengths = [256, 1024] if arguments.quick else arguments.lengths
    if not arguments.vllm:
        return [row async for row in measure(local_methods(SHAPES[arguments.shape]), lengths, arguments.reprefill_to)]
    from benchmarks.on_vllm import vllm_methods

    async with vllm_methods(SHAPES[arguments.shape], max(lengths)) as methods:
        return [row async for row in measure(methods, lengths, arguments.reprefill_to)]


def main() -> None:
    made = parser("audit_cost", __doc__)
    made.add_argument("--vllm", action="store_true", help="on vLLM's engine, with its prefix cache and without")
    made.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16_384], metavar="TOKENS")
    made.add_argument("--reprefill-to", type=int, default=4096, metavar="TOKENS", help="the longest stream read anew")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = asyncio.run(run(arguments))
    tell("audit_cost", arguments, {"rows": [asdict(row) for row in rows]}, lambda console: print_table(rows, console))


if __name__ == "__main__":
    main()
