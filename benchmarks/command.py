"""What the auditor's benchmarks have in common on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import AUDITOR_PACKAGES, facts
from benchmarks.shapes import SHAPES


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """With the options that each of them has; ``doc`` is the module's."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").split("\n")[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--quick", action="store_true", help="a small run: whether it runs, not how fast")
    made.add_argument("--shape", choices=SHAPES, default="3B" if torch.cuda.is_available() else "7.7M")
    made.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    return made


def tell(
    name: str, arguments: argparse.Namespace, content: dict[str, Any], print_table: Callable[[Console], None]
) -> None:
    """Print ``content`` as JSON, or the table, with what it was measured on."""
    machine = {**facts(packages=AUDITOR_PACKAGES), "threads": arguments.threads, "shape": arguments.shape}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    if arguments.json:
        print(json.dumps({"benchmark": name, "machine": machine, **content}))
        return
    console = Console()
    print_table(console)
    console.print("; ".join(f"{key} {value}" for key, value in machine.items()), soft_wrap=True)
