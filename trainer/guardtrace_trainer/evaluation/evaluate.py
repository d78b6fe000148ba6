"""One evaluation from its settings to its figures, resumable where it is written to a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import anyio
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardtrace_proxy.auditor import make_auditor, source_of
from guardtrace_proxy.auditor.published import for_model, published_prompt
from guardtrace_trainer.endpoints import Client, Endpoint
from guardtrace_trainer.evaluation.auditors import DEPTHS, AuditorJudge
from guardtrace_trainer.evaluation.data import Half, ImageFile, Item
from guardtrace_trainer.evaluation.figures import figures_of, label_figures, milliseconds
from guardtrace_trainer.evaluation.guards import MODELS, make_guard, request_fields
from guardtrace_trainer.evaluation.judged import GUARD, Judge, Judged
from guardtrace_trainer.evaluation.judging import GuardJudge, judge_all
from guardtrace_trainer.evaluation.readers import read_items, sources
from guardtrace_trainer.rows import RowError, write_rows
from guardtrace_trainer.steps import Step

CONCURRENCY = {"openai": 8, "vllm": 16, "transformers": 1}
CONNECT_MS = 10_000
HEADLINE = ("n", "macro_f1", "binary_f1", "accuracy", "binary_accuracy", "precision", "recall", "false_alarms")
"""What of the main depth's figures stands at the top of a result."""


class Plan(BaseModel):
    """Who is evaluated and how. ``auditor`` is an auditor's model, or with ``guard`` that guard's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auditor: str | None = None
    guard: str | None = None
    backend: Literal["openai", "transformers", "vllm"] | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    depth: Literal["annotate", "label", "cascade", "all"] = "annotate"
    escalate_at: float | None = Field(None, gt=0, le=1)
    prompt: Path | None = None
    request: dict[str, Any] = {}
    annotate_max_tokens: int = Field(512, ge=16)
    timeout_s: float = Field(120.0, gt=0, allow_inf_nan=False)
    concurrency: int | None = Field(None, ge=1, le=1024)
    half: Half | None = None
    limit: int | None = Field(None, ge=1)
    images: Path | None = None
    analyses: bool = False
    may_be_mute: bool = False
    """Go on although there was no verdict on anything: a base that was never taught to judge is evaluated like that."""

    @field_validator("guard")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in MODELS:
            raise ValueError(f"there is no guard {value!r}: expected one of {', '.join(MODELS)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        if self.guard is None and self.auditor is None:
            raise ValueError("auditor: name an auditor, or a guard")
        if self.guard is not None and self.base_url is None:
            raise ValueError("base_url: a guard is asked over HTTP; give the URL of its server, ending in /v1")
        if self.guard is not None and self.model is None:
            raise ValueError(f"auditor: name the model that is to be the {self.guard}")
        if self.guard is None and self.request:
            raise ValueError("request: only guards take further request fields")
        return self

    @property
    def model(self) -> str | None:
        """The model's name."""
        return self.auditor or (None if self.guard is None else MODELS[self.guard])

    @property
    def served_by(self) -> Literal["openai", "transformers", "vllm"]:
        """The backend: ``openai`` where a URL is given, else ``transformers``."""
        return self.backend or ("transformers" if self.base_url is None else "openai")

    @property
    def depths(self) -> tuple[str, ...]:
        """The depths to judge at; the first one's figures stand at the top."""
        if self.guard is not None:
            return (GUARD,)
        return DEPTHS if self.depth == "all" else (self.depth,)

    def settings(self) -> dict[str, Any]:
        """What of it changes verdicts or figures: for the manifest. Of prompts their SHA-256."""
        fields = self.model_dump(mode="json", exclude={"api_key_env", "concurrency", "timeout_s", "images", "prompt"})
        prompt = self.system_prompt() or (published_prompt() if self.guard == "llm-judge" else None)
        return {**fields, "prompt": None if prompt is None else hashlib.sha256(prompt.encode()).hexdigest()}

    def system_prompt(self) -> str | None:
        """The user's own, or the published one for the published auditor; None for the judge's own."""
        given = None if self.prompt is None else self.prompt.read_text("utf-8").strip()
        return given if self.guard is not None else for_model(self.auditor or "", given, self.depth)[0]


def load(plan: Plan, data: Sequence[Path]) -> list[Item]:
    """The items to judge: of all sets, the wanted half, at most ``limit``, spread evenly.

    Raises:
        RowError: a set can't be read, is empty, or two items have the same subset and id.
    """
    items = [item for path in data for item in read_items(path, plan.half, plan.images)]
    if not items:
        raise RowError(f"{', '.join(map(str, data))}: there are no items")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise RowError(f"{item.key!r} comes twice; give sets of other subsets, or each set once")
        seen.add(item.key)
    if plan.limit is None or plan.limit >= len(items):
        return items
    return [items[index * len(items) // plan.limit] for index in range(plan.limit)]


def evaluate(
    plan: Plan,
    data: Sequence[Path],
    out: Path | None = None,
    *,
    again: bool = False,
    log: Callable[[str], None],
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
    """Evaluate, and where ``out`` is given write the figures there and the verdicts beside, as ``NAME.verdicts.jsonl``.

    Raises:
        RowError, StepError, AuditorError, GuardSettingsError, EndpointFailure, EvaluationStopped: with what to do.
    """
    items = load(plan, data)
    if out is None:
        return _Run(plan, data, items, log, progress).result(None)[0]
    with_images = [item.image.path for item in items if isinstance(item.image, ImageFile)]
    files = [*(file for path in data for file in sources(path)), *with_images, *weights_of(plan)]
    step = Step(out.parent, f"{out.stem}.evaluate", inputs=files, settings=plan.settings(), again=again)
    if step.done:
        log(f"{out} stands as it was made from the same inputs with the same settings")
        return json.loads(out.read_text("utf-8"))  # type: ignore[no-any-return]
    result, rows = _Run(plan, data, items, log, progress).result(step)
    verdicts = verdicts_beside(out)
    write_rows(verdicts, rows)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    step.made([out, verdicts], items=len(rows))
    return result


def verdicts_beside(out: Path) -> Path:
    """Where the verdicts of a result are."""
    return out.with_name(f"{out.stem}.verdicts.jsonl")


def weights_of(plan: Plan) -> list[Path]:
    """The files of a checkpoint that lies in a folder: a retrained one is another auditor."""
    if plan.served_by == "openai" or plan.auditor is None:
        return []
    folder = Path(source_of(plan.auditor))
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


class _Run:
    def __init__(
        self,
        plan: Plan,
        data: Sequence[Path],
        items: Sequence[Item],
        log: Callable[[str], None],
        progress: Callable[[int, int], Any],
    ) -> None:
        self.plan = plan
        self.items = items
        self._log = log
        self._progress = progress
        self._found: dict[str, Any] = {
            "auditor": plan.model,
            "guard": plan.guard,
            "depth": plan.depths[0],
            "data": [str(path) for path in data],
            "half": plan.half,
            "limit": plan.limit,
        }

    def result(self, step: Step | None) -> tuple[dict[str, Any], list[Judged]]:
        rows = anyio.run(self._judge, step)
        plan = self.plan
        levels = self._found.pop("levels", True)
        depths = {depth: figures_of(rows, depth, levels=levels) for depth in plan.depths}
        main = depths[plan.depths[0]]
        result = {**{name: main.get(name) for name in HEADLINE}, "no_verdict": main["no_verdict"], **self._found}
        result["unlabelled"] = sum(row.level is None for row in rows)
        result["depths"] = depths
        if "label" in plan.depths:
            result["label_tier"] = label_figures(rows, self._found["escalate_at"])
        result["milliseconds"] = {depth: milliseconds(rows, depth) for depth in plan.depths}
        return result, rows

    async def _judge(self, step: Step | None) -> list[Judged]:
        concurrency = self.plan.concurrency or CONCURRENCY[self.plan.served_by]
        with nullcontext() if step is None else step.journal("judged", Judged) as journal:
            if journal is not None and journal.rows:
                self._log(f"{len(journal.rows)} of {len(self.items)} items are judged already")
            async with self._judge_of() as judge:
                return await judge_all(
                    self.items,
                    judge,
                    concurrency=concurrency,
                    journal=journal,
                    may_be_mute=self.plan.may_be_mute,
                    progress=self._progress,
                )

    @asynccontextmanager
    async def _judge_of(self) -> AsyncIterator[Judge]:
        if self.plan.guard is not None:
            async with self._guard_judge(self.plan.guard) as judge:
                yield judge
        else:
            async with self._auditor_judge() as judge:
                yield judge

    @asynccontextmanager
    async def _guard_judge(self, name: str) -> AsyncIterator[Judge]:
        plan = self.plan
        assert plan.model is not None
        assert plan.base_url is not None
        endpoint = Endpoint(
            name=name,
            base_url=plan.base_url,
            model=plan.model,
            api_key_env=plan.api_key_env,
            stream=False,
            concurrency=plan.concurrency or CONCURRENCY["openai"],
            timeout_s=plan.timeout_s,
            request=request_fields(name, plan.request),
        )
        async with Client(endpoint) as client:
            guard = make_guard(name, client, plan.prompt)
            self._found["levels"] = guard.levels
            with_image = sum(item.image is not None for item in self.items)
            self._found["images_not_shown"] = 0 if guard.sees_images else with_image
            yield GuardJudge(guard, replies=plan.analyses)

    @asynccontextmanager
    async def _auditor_judge(self) -> AsyncIterator[Judge]:
        plan = self.plan
        assert plan.auditor is not None
        auditor = make_auditor(
            plan.served_by,
            model=plan.auditor,
            base_url=plan.base_url,
            api_key=key_of(plan.api_key_env),
            depth="cascade" if plan.depth == "all" else plan.depth,
            timeout_ms=CONNECT_MS,
            annotate_max_tokens=plan.annotate_max_tokens,
            system_prompt=plan.system_prompt(),
        )
        await auditor.start()
        try:
            judge = AuditorJudge(
                auditor,
                plan.depths,
                escalate_at=plan.escalate_at,
                timeout_ms=round(plan.timeout_s * 1000),
                analyses=plan.analyses,
            )
            self._found["escalate_at"] = judge.escalate_at
            yield judge
        finally:
            self._found["warnings"] = list(auditor.warnings)
            await auditor.aclose()


def key_of(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise RowError(f"the environment variable {name} holds no key")
    return key
