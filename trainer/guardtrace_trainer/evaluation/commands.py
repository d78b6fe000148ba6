"""``guardtrace-train evaluate`` and ``guardtrace-train compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from guardtrace_trainer.evaluation.guards import MODELS
from guardtrace_trainer.evaluation.streaming_commands import stream_evaluate
from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.terminal import NowAndThen, log

PROGRESS_SECONDS = 5.0


def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(help="Evaluation folder, corpus, published test file or recorded set; may be repeated."),
    ],
    auditor: Annotated[
        str | None, typer.Option(help="builtin:nano, a folder, a hub id, or a server's model name.")
    ] = None,
    guard: Annotated[str | None, typer.Option(help=f"Another guard: {', '.join(MODELS)}.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="openai, transformers or vllm; openai where --base-url is given.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server, ending in /v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the server's key.")] = None,
    depth: Annotated[
        str | None,
        typer.Option(help="annotate (the default), label, cascade (the default on streams), or all."),
    ] = None,
    escalate_at: Annotated[
        float | None, typer.Option(help="Label risk from which a cascade annotates; else the checkpoint's own, or 0.1.")
    ] = None,
    prompt: Annotated[Path | None, typer.Option(help="System prompt; some guards need their authors' own.")] = None,
    request: Annotated[
        str, typer.Option(help="Further request fields of a guard, as JSON; null removes one of its own.")
    ] = "{}",
    annotate_max_tokens: Annotated[int, typer.Option(help="Tokens that an annotation may have.")] = 512,
    timeout_s: Annotated[float, typer.Option(help="Seconds that one read may take.")] = 120.0,
    concurrency: Annotated[int | None, typer.Option(help="Items judged at once: 8 over HTTP, 1 in process.")] = None,
    half: Annotated[str | None, typer.Option(help="dev or test, of sets that have halves.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many items, spread evenly.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images of published files, if not beside them.")] = None,
    analyses: Annotated[bool, typer.Option(help="Keep analyses in the verdicts: they quote what was judged.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write figures there, verdicts beside; interrupted, the same command goes on.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Replay through the gate; stream-evaluate has more options.")
    ] = False,
    policy: Annotated[str, typer.Option(help="Of --streaming: a preset, policies/NAME.yaml, or a file.")] = "balanced",
    again: Annotated[bool, typer.Option(help="Begin anew, whatever --out holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge items with an auditor or another guard, and print how often it is right."""
    from guardtrace_trainer.evaluation.evaluate import Plan
    from guardtrace_trainer.evaluation.evaluate import evaluate as run
    from guardtrace_trainer.evaluation.table import summary

    with failing_plainly():
        if streaming and (guard is not None or auditor is None or out is None):
            raise RowError("--streaming: name an --auditor, which gates use, and with --out a folder for the results")
        if streaming and analyses:
            raise RowError("--streaming: takes no --analyses, since a gate's results keep none; leave it out")
        if streaming and _object(request):
            raise RowError("--streaming: takes no --request, which is for guards; leave it out")
    if streaming:
        assert auditor is not None
        assert out is not None
        stream_evaluate(
            data,
            out,
            auditor,
            policy,
            backend,
            base_url,
            api_key_env,
            depth or "cascade",
            escalate_at,
            prompt=prompt,
            half=half,
            limit=limit,
            annotate_max_tokens=annotate_max_tokens,
            timeout_s=timeout_s,
            concurrency=concurrency,
            images=images,
            again=again,
            as_json=as_json,
        )
        return
    with failing_plainly():
        plan = Plan(
            auditor=auditor,
            guard=guard,
            backend=backend,
            base_url=base_url,
            api_key_env=api_key_env,
            depth=depth or "annotate",
            escalate_at=escalate_at,
            prompt=prompt,
            request=_object(request),
            annotate_max_tokens=annotate_max_tokens,
            timeout_s=timeout_s,
            concurrency=concurrency,
            half=half,
            limit=limit,
            images=images,
            analyses=analyses,
        )
        result = run(plan, data, out, again=again, log=log, progress=NowAndThen("judged"))
    for warning in result.get("warnings", ()):
        log(f"warning: {warning}")
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else summary(result))


def compare(
    results: Annotated[list[Path], typer.Argument(help="What `evaluate --out` wrote; the first is the base.")],
    paired: Annotated[bool, typer.Option(help="Also paired differences from the first, on the same items.")] = False,
) -> None:
    """Print results in the layout of the paper's table, with the paper's own figures where its test sets were used."""
    from guardtrace_trainer.evaluation.table import comparison, differences, read_result

    with failing_plainly():
        named = {path.stem: path for path in results}
        if len(named) < len(results):
            raise RowError("two results have the same file name: rename one, it is what the rows are called by")
        typer.echo(comparison({name: read_result(path) for name, path in named.items()}))
        if paired:
            typer.echo("\n" + differences(named))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RowError("--request: expected a JSON object")
    return value
