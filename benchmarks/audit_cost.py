"""What auditing one stream costs by its length: each token read once, beside reading all of it again at each audit.

``python -m benchmarks.audit_cost [--json] [--quick]``; with ``--vllm``, in vLLM's environment, on its engine. What is
measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.audit_method import EVERY, Method, Row
from benchmarks.command import parser, tell
from benchmarks.shapes import SHAPES, Shape, make_auditor


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
