"""``data import``: source queries without near-duplicates, split into train and test.

Each import is a step of its own, ``import-NAME``, whose kept rows stand in ``sources/NAME.jsonl``; ``queries.jsonl``
and ``duplicates.jsonl`` are all of them together, in the order of the imports. What an earlier import kept stays; a
near-duplicate of it is left out of a later one. A query's id and split depend on nothing but its normalised text (the
split also on the seed), so that adding queries moves no other.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardtrace_trainer.corpus.reading import Layout, SourceQuery, read_queries
from guardtrace_trainer.corpus.similar import NearIndex, normalised
from guardtrace_trainer.rows import Query, Request, Row, Split, read_rows, write_rows
from guardtrace_trainer.steps import Manifest, Step, StepError

QUERIES, DUPLICATES, SOURCES, HADES = "queries.jsonl", "duplicates.jsonl", "sources", "hades.jsonl"
HADES_LEFT_OUT = f"{SOURCES}/hades.left-out.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Duplicate(Row, frozen=True, kw_only=True):
    """A query that was left out since ``of`` (a query's id) says the same. ``id`` is where it stood."""

    text: str
    source: str
    of: str
    similarity: float


def query_id(text: str) -> str:
    """Of a normalised text."""
    return "q-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(text: str, test_share: float, seed: int) -> Split:
    """Where a normalised text belongs; a share of ``test_share`` of all texts is for testing."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_share * 2**64 else "train"


def import_queries(
    files: Sequence[Path],
    corpus: Path,
    source: str,
    layout: Layout = Layout(),
    *,
    test_share: float = 0.2,
    seed: int = 0,
    again: bool = False,
) -> dict[str, Any]:
    """Read ``files`` into the corpus as the source ``source``; returns the counts of the step.

    Raises:
        RowError: a file doesn't fit.
        StepError: the source was imported otherwise before, or the corpus is split otherwise.
    """
    check_source(source)
    if source == "hades":
        raise StepError("the source name hades is taken by `data import-hades`; choose another")
    check_split(corpus, source, test_share, seed)
    order = order_of(corpus, source)
    settings = {
        "format": layout.format,
        "text_field": layout.text_field,
        "category_field": layout.category_field,
        "renamed": dict(layout.renamed),
        "categories": layout.categories,
        "test_share": test_share,
        "seed": seed,
    }
    read = [(file, query) for file in files for query in read_queries(file, layout)]
    step = Step(corpus, f"import-{source}", inputs=files, settings=settings, again=again)
    if not step.done:
        index = _index_of_others(corpus, source, [normalised(query.text) for _, query in read])
        kept, duplicates = _without_duplicates(read, source, index, test_share, seed, hung=_hung(corpus, source))
        step.finish(
            {f"{SOURCES}/{source}.jsonl": kept, f"{SOURCES}/{source}.duplicates.jsonl": duplicates},
            read=len(read),
            kept=len(kept),
            duplicates=len(duplicates),
            **dict(Counter(query.split for query in kept)),
            order=order,
        )
    _join(corpus)
    return step.manifest.counts


def check_source(source: str) -> None:
    """A source's name is part of file names."""
    if not _NAME.fullmatch(source) or source.endswith(".duplicates"):
        raise StepError(
            f"--source {source!r}, in a recipe name: expected letters, digits, dots, dashes and underscores"
        )


def check_split(corpus: Path, source: str, test_share: float, seed: int) -> None:
    """An import is to split as the others do, save its own earlier one, whose step tells what differs, and those that
    are due to be made again."""
    if not 0 <= test_share <= 1:
        raise StepError(f"--test-share {test_share}: expected a number from 0 to 1")
    for manifest in imports(corpus):
        if manifest.step == f"import-{source}" or manifest.again == "due":
            continue
        was = manifest.settings.get("test_share"), manifest.settings.get("seed")
        if was != (test_share, seed):
            raise StepError(
                f"{corpus}: {manifest.step} split this corpus with --test-share {was[0]} --seed {was[1]}; "
                "give the same, or take another folder; run's --again-from corpus imports all sources of a recipe anew"
            )


def imports(corpus: Path) -> list[Manifest]:
    """The manifests of all finished imports, in their order."""
    found = [_manifest(path) for path in sorted(corpus.glob("import-*.manifest.json"))]
    return sorted((one for one in found if one.seconds is not None), key=lambda one: one.counts["order"])


def keep_only(corpus: Path, sources: Collection[str], *, again: bool = False) -> None:
    """See to it that the corpus holds no other imports, not even half of one: ``again`` takes them out. HADES then
    goes, too, and is to be imported anew: its instructions may belong to queries that are gone.

    Raises:
        StepError: there are others.
    """
    manifests = sorted(corpus.glob("import-*.manifest.json"))
    found = {path.name.removeprefix("import-").removesuffix(".manifest.json"): path for path in manifests}
    others = {name: path for name, path in found.items() if name not in sources}
    if not others:
        return
    if not again:
        raise StepError(
            f"{corpus} holds what was imported as {', '.join(others)}, which the recipe doesn't name: name it, or take "
            "it out by --again-from corpus"
        )
    for name, manifest in others.items():
        own = [f"{SOURCES}/{name}.jsonl", f"{SOURCES}/{name}.duplicates.jsonl"]
        for file in [HADES_LEFT_OUT] if name == "hades" else own:
            (corpus / file).unlink(missing_ok=True)
        (corpus / HADES).unlink(missing_ok=True)
        manifest.unlink()  # the last: after a crash it says what is still to go
    _join(corpus)


def requests_of_hades(corpus: Path) -> list[Request]:
    """What `data import-hades` made, or nothing."""
    path = corpus / HADES
    return read_rows(path, Request) if path.exists() else []


def _manifest(path: Path) -> Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise StepError(f"{path} is no manifest ({error}); remove it and import again") from error


def order_of(corpus: Path, source: str) -> int:
    """The place of a source among the others: its old one if it had one."""
    orders = {manifest.step: int(manifest.counts["order"]) for manifest in imports(corpus)}
    return orders.get(f"import-{source}", max(orders.values(), default=0) + 1)


def _names(corpus: Path) -> list[str]:
    names = [manifest.step.removeprefix("import-") for manifest in imports(corpus)]
    return [name for name in names if name != "hades"]


def _kept(corpus: Path, source: str) -> list[Query]:
    return read_rows(corpus / SOURCES / f"{source}.jsonl", Query)


def _index_of_others(corpus: Path, source: str, expected: Iterable[str]) -> NearIndex:
    """What the other imports kept, and all instructions of HADES, by the ids of the queries that they belong to."""
    index = NearIndex(expected)
    texts = [(query.id, query.text) for name in _names(corpus) if name != source for query in _kept(corpus, name)]
    texts += [(request.query_id, request.query) for request in requests_of_hades(corpus)]
    for name, text in dict.fromkeys((name, normalised(text)) for name, text in texts):
        index.add(name, text)
    return index


def _hung(corpus: Path, source: str) -> set[str]:
    """The queries that instructions of HADES belong to and that aren't HADES's own: instructions are near them, or the
    source brought the same words before."""
    requests = requests_of_hades(corpus)
    earlier = corpus / SOURCES / f"{source}.jsonl"
    brought = {query.id for query in (read_rows(earlier, Query) if earlier.exists() else [])}
    near = {row.query_id for row in requests if query_id(normalised(row.query)) != row.query_id}
    return near | (brought & {row.query_id for row in requests})


def _without_duplicates(
    read: Iterable[tuple[Path, SourceQuery]],
    source: str,
    index: NearIndex,
    test_share: float,
    seed: int,
    hung: Iterable[str] = (),
) -> tuple[list[Query], list[Duplicate]]:
    """What is kept and what isn't. A query that instructions of HADES were ``hung`` on is no duplicate of those."""
    own = set(hung)
    kept: list[Query] = []
    duplicates: dict[str, Duplicate] = {}
    for file, query in read:
        text = normalised(query.text)
        name = query_id(text)
        near = [found for found in index.near(text) if not (found.id == name and name in own)]
        if near:
            place = f"{source}:{file}:{query.line}"
            duplicates[place] = Duplicate(
                id=place, text=query.text, source=source, of=near[0].id, similarity=round(near[0].similarity, 4)
            )
            continue
        index.add(name, text)
        own.discard(name)
        split = split_of(text, test_share, seed)
        kept.append(Query(id=name, text=query.text, source=source, split=split, category=query.category))
    return kept, list(duplicates.values())


def _join(corpus: Path) -> None:
    names = _names(corpus)
    write_rows(corpus / QUERIES, [query for name in names for query in _kept(corpus, name)])
    paths = [corpus / SOURCES / f"{name}.duplicates.jsonl" for name in names]
    write_rows(corpus / DUPLICATES, [row for path in paths for row in read_rows(path, Duplicate)])
