"""``data expand``: each query in several variants, as ``requests.jsonl`` with its images.

========== =================================================== =======================
variant    image                                               question
========== =================================================== =======================
text       none                                                the query
irrelevant one of a folder, drawn by seed                      the query
aligned    drawn for the query by a model, or prepared         the query
figstep    the query as the title of an empty list             to fill in the list
csdj       twelve images, of which three hold the query        to answer those three
hades      of `data import-hades`, taken in where there is any points to the image
========== =================================================== =======================

A query's variants and draws depend on its id and the seed alone. What can't be made for a query (a title that is too
long, an image that a model refused) is left out, logged in ``left-out.jsonl`` and counted.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardtrace_trainer.corpus import csdj
from guardtrace_trainer.corpus.maker import VARIANTS, Drawn, Inputs, Made, Maker
from guardtrace_trainer.corpus.paid import ImagesEndpoint
from guardtrace_trainer.corpus.pictures import IMAGES, folder_hash
from guardtrace_trainer.corpus.queries import HADES, QUERIES, requests_of_hades
from guardtrace_trainer.rows import Query, Request, Row, read_rows, write_rows
from guardtrace_trainer.steps import Journal, Step, StepError, file_hash

REQUESTS, LEFT_OUT = "requests.jsonl", "left-out.jsonl"
_OWN_FOLDERS = ("irrelevant", "prepared", "figstep", "csdj")
"""Under ``images/``: what a new beginning makes again. What was paid for stands elsewhere."""


class LeftOut(Row, frozen=True, kw_only=True):
    """A request (``id``) that couldn't be made."""

    why: str


def expand(
    corpus: Path,
    inputs: Inputs = Inputs(),
    *,
    variants: Sequence[Made] | None = None,
    per_query: int = 4,
    seed: int = 0,
    again: bool = False,
    progress: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
) -> dict[str, Any]:
    """Make the requests of a corpus; returns the counts of the step.

    A query gets all of ``variants``, or ``per_query`` of them drawn by seed. ``progress`` is told a task's name and
    size, and gives what to call after each item of it.

    Raises:
        StepError: something that a variant needs isn't there, or the corpus was expanded otherwise before.
        RowError: the queries don't fit.
        EndpointFailure: a model can't be had; what came from it until then is kept.
    """
    chosen = list(variants) if variants is not None else inputs.possible()
    _check(chosen, inputs, per_query)
    hades = requests_of_hades(corpus)
    files = [corpus / QUERIES] if (corpus / QUERIES).exists() or not hades else []
    step = Step(
        corpus,
        "expand",
        inputs=[*files, *([corpus / HADES] if hades else [])],
        settings=_settings(inputs, chosen, per_query, seed),
        again=again,
    )
    if step.done:
        return step.manifest.counts
    if not step.resumed:
        for name in _OWN_FOLDERS:
            shutil.rmtree(corpus / IMAGES / name, ignore_errors=True)
    queries = read_rows(corpus / QUERIES, Query) if files else []
    maker = Maker(corpus, inputs, seed)
    wanted = [(query, variant) for query in queries for variant in _drawn(query, chosen, per_query, seed)]
    maker.pay([query for query, variant in wanted if variant == "aligned"], "aligned", progress)
    maker.pay([query for query, variant in wanted if variant == "csdj"], "csdj", progress)
    with step.journal("requests", Drawn) as journal:
        came = progress("requests", len(wanted))
        drawn = []
        for query, variant in wanted:
            drawn.append((query, variant, _known(maker, journal, query, variant)))
            came()
    requests = [_request(query, variant, row) for query, variant, row in drawn if row.why is None] + hades
    left_out = [LeftOut(id=row.id, why=row.why) for _, _, row in drawn if row.why is not None]
    counts = dict(Counter(request.variant for request in requests))
    write_rows(corpus / REQUESTS, requests)
    write_rows(corpus / LEFT_OUT, left_out)
    images = sorted({corpus / request.image for request in requests if request.image is not None})
    step.made([corpus / REQUESTS, corpus / LEFT_OUT, *images], requests=len(requests), left_out=len(left_out), **counts)
    return step.manifest.counts


def _check(variants: Sequence[Made], inputs: Inputs, per_query: int) -> None:
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or len(set(variants)) != len(variants):
        raise StepError(f"--variants: expected some of {', '.join(VARIANTS)}, each once, got {', '.join(variants)}")
    if per_query < 1:
        raise StepError("--per-query: expected at least 1")
    if "irrelevant" in variants and inputs.irrelevant is None:
        raise StepError("the variant irrelevant needs --irrelevant-images FOLDER")
    if "aligned" in variants and inputs.aligned is None:
        raise StepError("the variant aligned needs --images-endpoint FILE.yaml or --aligned-images FOLDER")
    if "csdj" in variants and inputs.irrelevant is None:
        raise StepError("the variant csdj needs --irrelevant-images FOLDER")
    if "csdj" in variants and len(inputs.pool()) < csdj.DISTRACTIONS:
        raise StepError(f"--irrelevant-images {inputs.irrelevant}: the variant csdj needs {csdj.DISTRACTIONS} or more")


def _settings(inputs: Inputs, variants: Sequence[Made], per_query: int, seed: int) -> dict[str, Any]:
    aligned = inputs.aligned
    drawn_by = aligned.settings() if isinstance(aligned, ImagesEndpoint) else None
    return {
        "variants": list(variants),
        "per_query": per_query,
        "seed": seed,
        "irrelevant": None if inputs.irrelevant is None else folder_hash(inputs.pool()),
        "aligned": folder_hash(list(inputs.prepared().values())) if isinstance(aligned, Path) else drawn_by,
        "decompose": None if inputs.decompose is None else inputs.decompose.settings(),
        "font": None if inputs.font is None else file_hash(inputs.font),
    }


def _drawn(query: Query, variants: Sequence[Made], per_query: int, seed: int) -> list[Made]:
    """The query's variants, in the order of ``variants``."""
    ranks = {variant: hashlib.sha256(f"{seed}/variants/{query.id}/{variant}".encode()).digest() for variant in variants}
    taken = sorted(variants, key=ranks.__getitem__)[:per_query]
    return [variant for variant in variants if variant in taken]


def _known(maker: Maker, journal: Journal[Drawn], query: Query, variant: Made) -> Drawn:
    """From the journal if its image still stands, else made now."""
    name = f"{query.id}-{variant}"
    row = journal.rows.get(name)
    if row is not None and (row.image is None or _stands(maker.corpus / row.image, row.sha256)):
        return row
    row = maker.make(query, variant, name)
    journal.add(row)
    return row


def _stands(path: Path, sha256: str | None) -> bool:
    return path.is_file() and file_hash(path) == sha256


def _request(query: Query, variant: Made, row: Drawn) -> Request:
    return Request(
        id=row.id,
        query_id=query.id,
        query=query.text,
        source=query.source,
        split=query.split,
        variant=variant,
        question=row.question,
        image=row.image,
        category=query.category,
    )
