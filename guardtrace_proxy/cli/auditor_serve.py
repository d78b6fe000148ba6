"""``guardtrace auditor serve``: the guard model on a vLLM server, with the flags that audits need."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from guardtrace_proxy.cli.problems import fail

CONTEXT = 8192
IMAGES = 8
"""As many as the proxy's ``images.max_count`` lets a request have."""


def vllm_arguments(model: str, host: str, port: int, name: str | None, extra: Sequence[str]) -> list[str]:
    """What ``vllm`` is called with. ``extra`` stands last, so it wins.

    No reasoning parser: the guard's reply would be taken for thinking.
    """
    return [
        "serve",
        model,
        "--host",
        host,
        "--port",
        str(port),
        "--served-model-name",
        name or model,
        "--max-model-len",
        str(CONTEXT),
        "--limit-mm-per-prompt",
        json.dumps({"image": IMAGES, "video": 0}),
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--scheduling-policy",
        "priority",
        "--load-format",
        "safetensors",
        *extra,
    ]


def serve(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM_OPTION...]", help="Further options for vLLM.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where it listens: an address that nobody but the proxy reaches.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="On which port.")] = 9001,
    name: Annotated[str | None, typer.Option(help="What auditor.model calls it; MODEL by default.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command and don't run it.")] = False,
) -> None:
    """Serve the guard model with vLLM, for depth label, cascade and annotate."""
    arguments = vllm_arguments(model, host, port, name, extra or [])
    typer.echo(shlex.join(["vllm", *arguments]), err=not only_print)
    if only_print:
        return
    program = _find_vllm()
    if program is None:
        fail(
            "guardtrace: the command vllm isn't here. Install vLLM in an environment of its own (`pip install vllm`) "
            "and run the command above there"
        )
    os.execv(program, [program, *arguments])  # noqa: S606


def _find_vllm() -> str | None:
    """Beside this Python, where neither may be on the path, else on the path."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("vllm")
