"""The auditor that an evaluation's settings name, started, and closed in the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import guardtrace_proxy.auditor
from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_trainer.evaluation.evaluate import CONNECT_MS, Plan
from guardtrace_trainer.rows import RowError


@asynccontextmanager
async def opened_auditor(plan: Plan) -> AsyncIterator[Auditor]:
    """Raises RowError where the plan names a guard, all depths at once, or a key that isn't there."""
    if plan.guard is not None or plan.auditor is None:
        raise RowError("a gate is driven by an auditor: name one with --auditor")
    if plan.depth == "all":
        raise RowError("--depth: a gate audits at one depth; expected annotate, label or cascade")
    auditor = make_auditor(
        plan.served_by,
        model=plan.auditor,
        base_url=plan.base_url,
        api_key=_key(plan.api_key_env),
        depth=plan.depth,
        timeout_ms=CONNECT_MS,
        annotate_max_tokens=plan.annotate_max_tokens,
        max_context=plan.max_context,
        system_prompt=plan.system_prompt(),
    )
    await auditor.start()
    try:
        yield auditor
    finally:
        await auditor.aclose()


def weights_of(plan: Plan) -> list[Path]:
    """The files of a checkpoint that lies in a folder: a retrained one is another auditor."""
    if plan.served_by == "openai" or plan.auditor is None:
        return []
    folder = Path(plan.auditor)
    if plan.auditor == "builtin:nano":
        folder = Path(guardtrace_proxy.auditor.__file__).parent / "nano"
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise RowError(f"the environment variable {name} holds no key")
    return key
