"""``guardtrace-train data generate | annotate | stratify | review``."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.rows import Split
from guardtrace_trainer.steps import Manifest
from guardtrace_trainer.terminal import fail, printable

if TYPE_CHECKING:
    from guardtrace_trainer.annotation.review import Reject

app = typer.Typer(help="From requests to labelled traces.", no_args_is_help=True)

Corpus = Annotated[Path, typer.Argument(help="Folder of the corpus.", exists=True, file_okay=False)]
Again = Annotated[bool, typer.Option("--again", help="Begin anew: what was paid for is forgotten.")]
Extend = Annotated[
    bool, typer.Option("--extend", help="Inputs or settings have changed: pay only for what wasn't asked that way.")
]
KeepFailures = Annotated[bool, typer.Option("--keep-failures", help="Don't ask again what failed before.")]


class Splits(str, Enum):
    """Which requests are asked."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


class Rejects(str, Enum):
    """Which annotations of an item are rejected."""

    FARTHEST = "farthest"
    BOTH = "both"


SPLITS: dict[Splits, Split | None] = {Splits.TRAIN: "train", Splits.TEST: "test", Splits.ALL: None}
REJECTS: dict[Rejects, Reject] = {Rejects.FARTHEST: "farthest", Rejects.BOTH: "both"}


@app.command()
def generate(
    corpus: Corpus,
    models: Annotated[Path, typer.Option(help="YAML: the thinking models.")],
    samples: Annotated[int, typer.Option(min=1, help="Traces of each request and model.")] = 1,
    split: Annotated[Splits, typer.Option(help="Only the requests of one split.")] = Splits.ALL,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N requests.")] = None,
    again: Again = False,
    extend: Extend = False,
    keep_failures: KeepFailures = False,
) -> None:
    """Ask thinking models: requests.jsonl → traces.jsonl, traces.failed.jsonl."""
    from guardtrace_trainer.corpus.generate import Models, Plan
    from guardtrace_trainer.corpus.generate import generate as run
    from guardtrace_trainer.settings import read_settings

    _finish(
        lambda: run(
            corpus,
            Plan(read_settings(models, Models), samples, SPLITS[split], limit),
            again=again,
            extend=extend,
            keep_failures=keep_failures,
        )
    )


@app.command()
def annotate(
    corpus: Corpus,
    jury: Annotated[Path, typer.Option(help="YAML: three judges.")],
    again: Again = False,
    extend: Extend = False,
    keep_failures: KeepFailures = False,
) -> None:
    """Ask the jury: traces.jsonl → votes.jsonl, votes.failed.jsonl, screened.jsonl."""
    from guardtrace_trainer.annotation.jury import Jury
    from guardtrace_trainer.annotation.jury import annotate as run
    from guardtrace_trainer.settings import read_settings

    def do() -> Manifest:
        settings = read_settings(jury, Jury)
        return run(corpus, settings, base=jury.parent, again=again, extend=extend, keep_failures=keep_failures)

    _finish(do)


@app.command()
def stratify(
    corpus: Corpus,
    jury: Annotated[Path | None, typer.Option(help="YAML of the jury, whose `priority` picks annotations.")] = None,
    seed: Annotated[int, typer.Option(help="Picks one of several annotations where no priority does.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Also where it was done with another seed or votes.")] = False,
) -> None:
    """Sort by agreement: votes.jsonl → sft.jsonl, pairs.jsonl, experts.jsonl, test.jsonl."""
    from guardtrace_trainer.annotation.jury import Jury
    from guardtrace_trainer.annotation.stratify import Pick, stratify_corpus
    from guardtrace_trainer.settings import read_settings

    def do() -> Manifest:
        priority = read_settings(jury, Jury).priority if jury is not None else []
        return stratify_corpus(corpus, Pick(seed, priority), again=again)

    _finish(do)


@app.command()
def review(
    corpus: Corpus,
    out: Annotated[Path | None, typer.Option(help="Write a form, .csv or .jsonl, with the open items.")] = None,
    into: Annotated[list[Path] | None, typer.Option("--in", help="Take a filled form in; may be repeated.")] = None,
    screen: Annotated[bool, typer.Option("--screen", help="Judge on this terminal.")] = False,
    expert: Annotated[str, typer.Option(help="Who judges, or filled the forms where a row names nobody.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Forms may change votes given before.")] = False,
    reject: Annotated[
        Rejects, typer.Option(help="Reject the annotation farthest from the experts' level, or both.")
    ] = (Rejects.FARTHEST),
    seed: Annotated[int, typer.Option(help="Picks the rejected one of two that are equally far.")] = 0,
) -> None:
    """Have experts decide where all judges differ: experts.jsonl → expert_pairs.jsonl, expert_test.jsonl."""
    from guardtrace_trainer.annotation import forms, review
    from guardtrace_trainer.annotation import screen as screens
    from guardtrace_trainer.annotation.stratify import Pick

    if out is not None and out.exists():
        fail(f"--out {out} is there already, and experts may have filled it; give another name, or remove it")

    def do() -> Manifest:
        items = review.read_items(corpus)
        if into:
            earlier = review.read_reviews(corpus)
            taken = forms.read_forms(into, items, earlier, expert=expert, replace=replace)
            review.keep_reviews(corpus, taken)
            typer.echo(f"{len(taken)} votes taken", err=True)
        if screen:
            if not expert.strip():
                fail("--screen needs --expert NAME")
            screens.review_on_screen(corpus, expert, input, typer.echo)
        tally, manifest = review.decide(corpus, reject=REJECTS[reject], pick=Pick(seed))
        if out is not None:
            still_open = [item for item in items if item.id not in tally.levels]
            typer.echo(f"{forms.write_form(out, still_open)} open items in {out}", err=True)
        for item in tally.divided:
            typer.echo(f"{printable(item)}: the experts disagree; two more votes may decide", err=True)
        return manifest

    _finish(do)


def _finish(do: Callable[[], Manifest]) -> None:
    """Run a step and print what it counted."""
    with failing_plainly():
        typer.echo(json.dumps(do().counts, indent=1, ensure_ascii=False))
