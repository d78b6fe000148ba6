"""``guardtrace-train data …``: from text queries to requests, and what a corpus is composed of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.settings import read_settings
from guardtrace_trainer.steps import StepError

app = typer.Typer(help="Build a corpus.", no_args_is_help=True, pretty_exceptions_enable=False)

AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)
Corpus = Annotated[Path, typer.Argument(help="The corpus's folder.")]
Again = Annotated[bool, typer.Option("--again", help="Begin anew where it was done or begun otherwise.")]
TestShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the queries that are for testing.")]


class Format(str, Enum):
    """How a file of queries is written."""

    auto = "auto"
    jsonl = "jsonl"
    csv = "csv"
    s_eval = "s-eval"


class Question(str, Enum):
    """What is asked with an image of HADES."""

    pointer = "pointer"
    plain = "plain"


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSONL or CSV files.")],
    out: Annotated[Path, typer.Option(help="The corpus's folder; other sources in it stay.")],
    source: Annotated[str, typer.Option(help="The source's name in the corpus.")],
    format: Annotated[Format, typer.Option(help="auto: by suffix; S-Eval by its fields.")] = Format.auto,
    text_field: Annotated[str | None, typer.Option(help="The field of the query, where it can't be told.")] = None,
    category_field: Annotated[str | None, typer.Option(help="The field of the risk category.")] = None,
    category_as: Annotated[
        list[str] | None, typer.Option(metavar="THEIRS=OURS", help="Read a category of the file as one of ours.")
    ] = None,
    no_categories: Annotated[bool, typer.Option("--no-categories", help="Read no categories.")] = False,
    test_share: TestShare = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    again: Again = False,
) -> None:
    """Read queries, leave out near-duplicates, split into train and test: queries.jsonl."""
    from guardtrace_trainer.corpus.queries import import_queries
    from guardtrace_trainer.corpus.reading import Layout

    with failing_plainly():
        layout = Layout(format.value, text_field, category_field, _renamed(category_as or []), not no_categories)
        _say(import_queries(files, out, source, layout, test_share=test_share, seed=seed, again=again))


@app.command("import-hades")
def import_hades(
    folder: Annotated[Path, typer.Argument(help="HADES as published: Parquet files, or instructions/ and images.")],
    out: Annotated[Path, typer.Option(help="The corpus's folder.")],
    step: Annotated[int | None, typer.Option(help="Which images; without it the last step of each.")] = None,
    question: Annotated[
        Question, typer.Option(help="pointer: the keyword is only in the image; plain: the instruction as it is.")
    ] = Question.pointer,
    test_share: TestShare = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    again: Again = False,
) -> None:
    """Read the items of HADES; `data expand` takes them into requests.jsonl."""
    from guardtrace_trainer.corpus.hades import import_hades as run

    with failing_plainly():
        counts = run(folder, out, step=step, question=question.value, test_share=test_share, seed=seed, again=again)
        _say(counts)


@app.command()
def expand(
    corpus: Corpus,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Some of text,irrelevant,aligned,figstep,csdj. Without it text, figstep, and irrelevant and aligned "
            "where their images are given."
        ),
    ] = None,
    irrelevant_images: Annotated[Path | None, typer.Option(help="Folder for irrelevant, and csdj.")] = None,
    aligned_images: Annotated[Path | None, typer.Option(help="Folder of images named by query id.")] = None,
    images_endpoint: Annotated[Path | None, typer.Option(help="YAML: a model that draws aligned images.")] = None,
    decompose_endpoint: Annotated[Path | None, typer.Option(help="YAML: a chat model for csdj's questions.")] = None,
    font: Annotated[Path | None, typer.Option(help="Font for figstep and csdj, instead of DejaVu.")] = None,
    per_query: Annotated[int, typer.Option(min=1, help="Variants a query gets at most, drawn by seed.")] = 4,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    again: Again = False,
) -> None:
    """Make each query's variants: requests.jsonl and images/."""
    from guardtrace_trainer.corpus.expand import expand as run
    from guardtrace_trainer.corpus.maker import Inputs
    from guardtrace_trainer.corpus.paid import ImagesEndpoint

    with failing_plainly(), _progress() as progress:
        if aligned_images is not None and images_endpoint is not None:
            raise StepError("give --aligned-images or --images-endpoint, not both")
        inputs = Inputs(
            irrelevant=irrelevant_images,
            aligned=aligned_images if images_endpoint is None else read_settings(images_endpoint, ImagesEndpoint),
            decompose=None if decompose_endpoint is None else read_settings(decompose_endpoint, Endpoint),
            font=font,
        )
        chosen: Any = None if variants is None else [name.strip() for name in variants.split(",")]
        counts = run(corpus, inputs, variants=chosen, per_query=per_query, seed=seed, again=again, progress=progress)
    _say(counts)


@app.command()
def stats(
    corpus: Corpus, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Print what a corpus is composed of, beside the paper's figures."""
    from guardtrace_trainer.corpus import stats as module

    with failing_plainly():
        found = module.stats(corpus)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(module.tables(found))


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:

        def begin(name: str, total: int) -> Callable[[], None]:
            task = bars.add_task(name, total=total)
            return lambda: bars.advance(task)

        yield begin


def _say(counts: dict[str, Any]) -> None:
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.items() if name != "order"))


def _renamed(pairs: list[str]) -> dict[str, Any]:
    from guardtrace_trainer.corpus.reading import CATEGORIES

    renamed = {}
    for pair in pairs:
        theirs, _, ours = pair.rpartition("=")
        if not theirs or ours not in CATEGORIES:
            raise StepError(f"--category-as {pair!r}: expected THEIRS=OURS, OURS one of {', '.join(CATEGORIES)}")
        renamed[theirs] = ours
    return renamed
