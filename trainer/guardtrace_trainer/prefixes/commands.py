"""``guardtrace-train data onset`` and ``data prefixes``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.steps import Manifest, StepError
from guardtrace_trainer.terminal import NowAndThen

if TYPE_CHECKING:
    from guardtrace_trainer.prefixes.judges import PrefixJudge

app = typer.Typer(help="Prefixes: where traces turn unsafe, and what their beginnings teach.", no_args_is_help=True)
PROGRESS_SECONDS = 5.0

Corpus = Annotated[Path, typer.Argument(help="Folder of the corpus.", exists=True, file_okay=False)]
Again = Annotated[bool, typer.Option("--again", help="Begin anew; judgments that were paid for are kept.")]


@app.command()
def onset(
    corpus: Corpus,
    auditor: Annotated[str | None, typer.Option(help="builtin:nano, a folder, a hub id, or a server's model.")] = None,
    judge: Annotated[Path | None, typer.Option(help="YAML of an endpoint, asked as the jury is.")] = None,
    backend: Annotated[str | None, typer.Option(help="openai, transformers or vllm, of the auditor.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The auditor's server, ending in /v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with that server's key.")] = None,
    depth: Annotated[str, typer.Option(help="Of the auditor; label and cascade leave out analyses.")] = "annotate",
    prompt: Annotated[Path | None, typer.Option(help="System prompt in place of the judge's own.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Traces at once; else the judge's own.")] = None,
    again: Again = False,
) -> None:
    """Find the first unsafe sentence by bisection: sft.jsonl, pairs.jsonl → onsets.jsonl."""

    def do() -> Manifest:
        from guardtrace_trainer.evaluation.evaluate import CONCURRENCY, Plan, weights_of
        from guardtrace_trainer.prefixes.onset import find_onsets

        if (auditor is None) == (judge is None):
            raise StepError("name one judge: --auditor or --judge")
        inputs: list[Path] = []
        if judge is not None:
            asked, at_once = _endpoint_judge(judge, prompt)
        else:
            from guardtrace_trainer.prefixes.judges import AuditorJudge

            given = {"auditor": auditor, "backend": backend, "base_url": base_url, "api_key_env": api_key_env}
            plan = Plan.model_validate({**given, "depth": depth, "prompt": prompt})
            asked, at_once, inputs = AuditorJudge(plan), CONCURRENCY[plan.served_by], weights_of(plan)
        at_once = concurrency or at_once
        return find_onsets(
            corpus, asked, inputs=inputs, concurrency=at_once, again=again, progress=NowAndThen("traces")
        )

    _finish(do)


@app.command()
def prefixes(
    corpus: Corpus,
    per_trace: Annotated[int, typer.Option(min=1, help="Beginnings of each trace.")] = 4,
    mid_sentence: Annotated[float, typer.Option(min=0, max=1, help="Share of them that ends in mid-sentence.")] = 0.25,
    even: Annotated[
        bool, typer.Option("--even/--all", help="As many safe as unsafe ones, and pairs against early as against late.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Draws the beginnings.")] = 0,
    judge: Annotated[
        Path | None, typer.Option(help="YAML of an endpoint that is asked for its words on each beginning.")
    ] = None,
    prompt: Annotated[Path | None, typer.Option(help="System prompt in place of the judge's own.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also where it was done with other settings.")] = False,
) -> None:
    """Make rows and pairs of beginnings: onsets.jsonl → sft_prefixes.jsonl, pair_prefixes.jsonl."""

    def do() -> Manifest:
        from guardtrace_trainer.prefixes.curriculum import Curriculum, make_prefixes

        settings = Curriculum(per_trace=per_trace, mid_sentence=mid_sentence, even=even, seed=seed)
        asked, at_once = (None, 1) if judge is None else _endpoint_judge(judge, prompt)
        return make_prefixes(corpus, settings, asked, concurrency=at_once, again=again)

    _finish(do)


def _endpoint_judge(path: Path, prompt: Path | None) -> tuple[PrefixJudge, int]:
    from guardtrace_trainer.annotation.prompts import system_prompt
    from guardtrace_trainer.endpoints import Endpoint
    from guardtrace_trainer.prefixes.judges import EndpointJudge
    from guardtrace_trainer.settings import read_settings

    endpoint = read_settings(path, Endpoint)
    return EndpointJudge(endpoint, system_prompt(prompt)), endpoint.concurrency


def _finish(do: Callable[[], Manifest]) -> None:
    """Run a step and print what it counted."""
    with failing_plainly():
        typer.echo(json.dumps(do().counts, indent=1, ensure_ascii=False))
