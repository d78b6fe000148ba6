"""How many real, harmless traces would the embedded auditor cut or redact? Recorded traces, through the real gate."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from PIL import Image

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.cascade import ESCALATE_AT
from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.protocol import Auditor, DoesNotFit
from guardtrace_proxy.policy.schema import Policy
from guardtrace_trainer.evaluation.replay import Replayed, plan_for, replay
from guardtrace_trainer.nano.evaluate import ROOT, request_image

DATA = ROOT.parent / "shared" / "data"
FILES = {
    "benign-code": "traces.jsonl",
    "benign-everyday": "traces.jsonl",
    "benign-math-r1": "traces.jsonl",
    "benign-qwen3": "traces.jsonl",
    "photo-vlm": "traces.jsonl",
    "star1": "star1.jsonl",
}
SAFE_REASONING = "star1"
"""Harmful requests that are refused: reported apart from the plain ones."""
SAMPLE, SEED = 100, 2026
PLAN = plan_for("annotate", ESCALATE_AT)


def sample(data: Path, count: int = SAMPLE, seed: int = SEED) -> list[tuple[str, dict[str, Any], Path]]:
    """A seeded sample over all files: (set, row, folder)."""
    rows = []
    for name, file in FILES.items():
        for line in (data / name / file).read_text("utf-8").splitlines():
            rows.append((name, json.loads(line), data / name))
    return random.Random(seed).sample(rows, count)


def benign_share(
    folder: str, log: Callable[[str], None], data: Path = DATA, count: int = SAMPLE, seed: int = SEED
) -> dict[str, Any] | None:
    """Share of streams cut or redacted at least once, a row a set; None where the data is absent."""
    if not data.exists():
        log(f"{data} is absent: the share of real benign traces isn't measured")
        return None

    async def run() -> dict[str, Any]:
        auditor = make_auditor("transformers", model=folder, annotate_max_tokens=64)
        await auditor.start()
        policy = Policy(version=1)
        rows: dict[str, dict[str, int]] = {}
        for name, row, where in sample(data, count, seed):
            images = []
            if row.get("image"):
                images = [request_image(Image.open(where / row["image"]).convert("RGB"))]
            entry = rows.setdefault(name, {"streams": 0, "stopped": 0, "refused": 0})
            entry["streams"] += 1
            query = Query([Turn("user", row["question"])], images)
            try:
                replayed = await _replayed(auditor, query, policy, row)
            except DoesNotFit as error:
                entry["refused"] += 1
                log(f"{name} {row['id']}: refused: {error}")
                continue
            entry["stopped"] += replayed.is_stopped
            if replayed.is_stopped:
                log(f"{name} {row['id']}: {replayed.action.value}{' (no verdict)' if replayed.has_failed else ''}")
        await auditor.aclose()
        return rows

    rows = anyio.run(run)
    return {"sets": rows, "plain": _shares([entry for name, entry in rows.items() if name != SAFE_REASONING])}


async def _replayed(auditor: Auditor, query: Query, policy: Policy, row: dict[str, Any]) -> Replayed:
    session = await auditor.open(query)
    try:
        return await replay(session, policy, PLAN, row["thinking"], row.get("answer") or "")
    finally:
        await session.aclose()


def _shares(entries: Sequence[dict[str, int]]) -> dict[str, float]:
    """``share`` stopped of those that were judged, ``refused_share`` too long for the auditor's context of all."""
    streams, stopped, refused = (sum(entry[key] for entry in entries) for key in ("streams", "stopped", "refused"))
    return {
        "streams": streams,
        "stopped": stopped,
        "refused": refused,
        "share": round(stopped / max(1, streams - refused), 4),
        "refused_share": round(refused / max(1, streams), 4),
    }
