"""The auditor that an evaluation's settings name, started, and closed in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_trainer.evaluation.evaluate import CONNECT_MS, Plan, key_of
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
        api_key=key_of(plan.api_key_env),
        depth=plan.depth,
        timeout_ms=CONNECT_MS,
        annotate_max_tokens=plan.annotate_max_tokens,
        system_prompt=plan.system_prompt(),
    )
    await auditor.start()
    try:
        yield auditor
    finally:
        await auditor.aclose()
