"""``guardtrace-train stream-evaluate`` and ``guardtrace-train sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.terminal import NowAndThen, log

if TYPE_CHECKING:
    from guardtrace_trainer.evaluation.stream_evaluate import StreamSettings

app = typer.Typer(help="Auditors on streams.", no_args_is_help=True)
PROGRESS_SECONDS = 5.0

Data = Annotated[list[Path], typer.Option(help="Evaluation folder, corpus or recorded set; may be repeated.")]
Auditor = Annotated[str, typer.Option(help="builtin:nano, a folder, a hub id, or a server's model name.")]
Out = Annotated[Path, typer.Option(help="Folder of the results; interrupted, the same command goes on.")]
PolicyName = Annotated[str, typer.Option("--policy", help="A preset, policies/NAME.yaml, or a file.")]
Backend = Annotated[str | None, typer.Option(help="openai, transformers or vllm; openai where --base-url is given.")]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server, ending in /v1.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the server's key.")]
AuditDepth = Annotated[str, typer.Option(help="label, annotate or cascade.")]
EscalateAt = Annotated[
    float | None, typer.Option(help="Label risk from which a cascade annotates; else the checkpoint's own, or 0.1.")
]
Prompt = Annotated[Path | None, typer.Option(help="System prompt in place of the auditor's own.")]
Rate = Annotated[float, typer.Option(help="How fast the thinking model writes, in tokens a second.")]
Delay = Annotated[float, typer.Option(help="What an audit takes, in milliseconds.")]
Measured = Annotated[bool, typer.Option("--measured", help="Let an audit take as long as it took, not --delay-ms.")]
Half = Annotated[str | None, typer.Option(help="dev or test, of sets that have halves.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one read may take.")]
Limit = Annotated[int | None, typer.Option(help="At most so many items, spread evenly.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens that an annotation may have.")]
Concurrency = Annotated[int | None, typer.Option(help="Streams played at once: 8 over HTTP, 1 in process.")]
Images = Annotated[Path | None, typer.Option(help="Images of published files, if not beside them.")]
Again = Annotated[bool, typer.Option(help="Begin anew, whatever --out holds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("stream-evaluate")
def stream_evaluate(
    data: Data,
    out: Out,
    auditor: Auditor = "builtin:nano",
    policy: PolicyName = "balanced",
    backend: Backend = None,
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    depth: AuditDepth = "cascade",
    escalate_at: EscalateAt = None,
    prompt: Prompt = None,
    tokens_per_second: Rate = 50.0,
    delay_ms: Delay = 100.0,
    measured: Measured = False,
    half: Half = None,
    limit: Limit = None,
    annotate_max_tokens: MaxTokens = 512,
    timeout_s: Timeout = 120.0,
    concurrency: Concurrency = None,
    images: Images = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Replay traces through the gate: time to detect, leak, false cuts, wait, F1 by share, cost; with a report."""
    with failing_plainly(ValueError):
        from guardtrace_trainer.evaluation.stream_evaluate import REPORT
        from guardtrace_trainer.evaluation.stream_evaluate import stream_evaluate as run
        from guardtrace_trainer.evaluation.stream_report import stream_lines
        from guardtrace_trainer.evaluation.table import markdown

        who = {
            "auditor": auditor,
            "backend": backend,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "depth": depth,
            "escalate_at": escalate_at,
            "prompt": prompt,
            "half": half,
            "limit": limit,
            "annotate_max_tokens": annotate_max_tokens,
            "timeout_s": timeout_s,
            "concurrency": concurrency,
            "images": images,
        }
        settings = _settings(who, policy, tokens_per_second, None if measured else delay_ms)
        found = run(settings, data, out, again=again, log=log, progress=NowAndThen("streams"))
        typer.echo(json.dumps(found, ensure_ascii=False) if as_json else markdown(["figure", ""], stream_lines(found)))
        log(f"report: {out / REPORT}")


@app.command()
def sweep(
    data: Data,
    out: Out,
    auditor: Auditor = "builtin:nano",
    policy: PolicyName = "balanced",
    first: Annotated[list[int] | None, typer.Option(help="Sizes of the first chunk; may be repeated.")] = None,
    growth: Annotated[list[float] | None, typer.Option(help="Growths of chunks; may be repeated.")] = None,
    max: Annotated[list[int] | None, typer.Option(help="Largest chunks; may be repeated.")] = None,
    threshold: Annotated[list[float] | None, typer.Option(help="Thresholds of both levels; may be repeated.")] = None,
    max_hold_ms: Annotated[
        list[int] | None, typer.Option(help="How long a token may wait for its chunk; may be repeated.")
    ] = None,
    max_false_cuts: Annotated[float, typer.Option(min=0, max=1, help="Share of safe streams that may be cut.")] = 0.02,
    max_audits: Annotated[
        float | None, typer.Option(help="Audits a stream; else half as many again as the policy's own.")
    ] = None,
    backend: Backend = None,
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    depth: AuditDepth = "cascade",
    escalate_at: EscalateAt = None,
    prompt: Prompt = None,
    tokens_per_second: Rate = 50.0,
    delay_ms: Delay = 100.0,
    half: Half = None,
    limit: Limit = None,
    annotate_max_tokens: MaxTokens = 512,
    timeout_s: Timeout = 120.0,
    concurrency: Concurrency = None,
    images: Images = None,
    again: Again = False,
) -> None:
    """Try boundaries and thresholds on a development split; write the chosen policy and calibration.json."""
    with failing_plainly(ValueError):
        from guardtrace_trainer.evaluation.stream_evaluate import sweep_streams
        from guardtrace_trainer.evaluation.stream_report import FRONT_HEAD, front_rows
        from guardtrace_trainer.evaluation.sweep import Grid
        from guardtrace_trainer.evaluation.table import markdown

        who = {
            "auditor": auditor,
            "backend": backend,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "depth": depth,
            "escalate_at": escalate_at,
            "prompt": prompt,
            "half": half,
            "limit": limit,
            "annotate_max_tokens": annotate_max_tokens,
            "timeout_s": timeout_s,
            "concurrency": concurrency,
            "images": images,
        }
        settings = _settings(who, policy, tokens_per_second, delay_ms)
        tried = {"first": first, "growth": growth, "max": max, "thresholds": threshold, "max_hold_ms": max_hold_ms}
        grid = Grid.model_validate({name: tuple(values) for name, values in tried.items() if values})
        points = sweep_streams(
            settings,
            data,
            out,
            grid,
            max_false_cuts=max_false_cuts,
            max_audits=max_audits,
            again=again,
            log=log,
            progress=NowAndThen("streams"),
        )
        typer.echo(markdown(FRONT_HEAD, front_rows(points)))
        log(f"written into {out}")


def _settings(who: dict[str, Any], policy: str, rate: float, delay_ms: float | None) -> StreamSettings:
    from guardtrace_proxy.policy.loading import find_policy, load_policy
    from guardtrace_trainer.evaluation.evaluate import Plan
    from guardtrace_trainer.evaluation.stream_evaluate import StreamSettings

    path = Path(policy) if policy.endswith((".yaml", ".yml")) else find_policy(policy, Path("policies"))
    if path is None:
        raise RowError(f"--policy: there is no policies/{policy}.yaml here and no preset {policy!r}")
    return StreamSettings(
        who=Plan.model_validate(who),
        policy=load_policy(path).policy,
        policy_name=path.stem,
        tokens_per_second=rate,
        delay_ms=delay_ms,
    )
