"""``data import-hades``: the items of HADES (arXiv 2403.09792) as requests.

It is published twice, and both are read. On Hugging Face (``Monosail/HADES``) as Parquet files with ``id, scenario,
keywords, step, category, instruction, image``; from https://github.com/AoiDragon/HADES as a folder with
``instructions/SCENARIO.json`` (lists of ``id, keywords, category, instruction``) and images at
``optimized_SD_images/SCENARIO/ID/concat_opt_STEP.jpg``. ``step`` counts how often an image was made worse; the last
one is taken, unless another is asked for. At the bottom of an image stands the keyword in writing, which the question
only points to; the wording of the pointer is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from PIL import Image

from guardtrace_proxy.images import ImageError
from guardtrace_trainer.corpus.pictures import IMAGES, decode_picture, media_type, read_picture, save_picture
from guardtrace_trainer.corpus.queries import (
    HADES,
    HADES_LEFT_OUT,
    QUERIES,
    check_split,
    order_of,
    query_id,
    split_of,
)
from guardtrace_trainer.corpus.similar import NearIndex, normalised
from guardtrace_trainer.rows import Category, Query, Request, Row, RowError, read_rows, write_rows
from guardtrace_trainer.steps import Step

SCENARIOS: dict[str, Category] = {
    "Violence": "crime and illegal activities",
    "Financial": "crime and illegal activities",
    "Privacy": "data privacy",
    "Self-Harm": "physical and mental health",
    "Animal": "ethics and morality",
}
"""The five scenarios with images, in the nine categories."""
POINTERS = {"behavior": "carry out this behavior on", "object": "this object", "concept": "this concept"}
LAYOUT_IMAGES = "optimized_SD_images"
_STEP = re.compile(r"concat_opt_(\d+)\.(?:jpg|jpeg|png)")


class Item(NamedTuple):
    """One image of HADES. ``place`` is for messages, ``image`` a file, or a row (from 0) of a Parquet file."""

    place: str
    id: str
    scenario: str
    keywords: str
    category: str
    instruction: str
    step: int
    image: Path | tuple[Path, int]


class LeftOut(Row, frozen=True, kw_only=True):
    """An instruction that was left out: it is near queries of both splits."""

    text: str
    of: tuple[str, ...]


class _Instruction(msgspec.Struct):
    id: int | str
    keywords: str
    category: str
    instruction: str


class _Record(_Instruction):
    scenario: str
    step: int


def import_hades(
    folder: Path,
    corpus: Path,
    *,
    step: int | None = None,
    question: Literal["pointer", "plain"] = "pointer",
    test_share: float = 0.2,
    seed: int = 0,
    again: bool = False,
) -> dict[str, Any]:
    """Read HADES from ``folder``; returns the counts of the step. ``step``: which images, None for the last of each.

    An instruction that is near a query of the corpus becomes a variant of that query, on its side of the split.

    Raises:
        RowError: an item doesn't fit, or there is none.
        StepError: HADES was imported otherwise before, or an image can't be taken.
    """
    check_split(corpus, "hades", test_share, seed)
    order = order_of(corpus, "hades")
    files = _files(folder)
    chosen = _chosen(_items(folder, files), step)
    if not chosen:
        raise RowError(f"{folder}: no item of HADES has an image of step {step}")
    settings = {"step": step, "question": question, "test_share": test_share, "seed": seed}
    work = Step(corpus, "import-hades", inputs=files, settings=settings, again=again)
    if work.done:
        return work.manifest.counts
    queries, left_out = _queries(chosen, corpus, test_share, seed)
    asked = [(item, queries[text]) for item in chosen if (text := normalised(item.instruction)) in queries]
    requests = [_request(item, query, question) for item, query in asked]
    _save({item.image: corpus / str(request.image) for (item, _), request in zip(asked, requests, strict=True)})
    write_rows(corpus / HADES, requests)
    write_rows(corpus / HADES_LEFT_OUT, left_out)
    images = [corpus / str(request.image) for request in requests]
    counts = {"read": len(chosen), "kept": len(requests), "left_out": len(chosen) - len(requests), "order": order}
    work.made([corpus / HADES, corpus / HADES_LEFT_OUT, *images], **counts)
    return work.manifest.counts


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.parquet")) or sorted((folder / "instructions").glob("*.json"))
    if not files:
        raise RowError(f"{folder}: holds neither *.parquet nor instructions/*.json; expected HADES as it is published")
    return files


def _items(folder: Path, files: Sequence[Path]) -> Iterator[Item]:
    for file in files:
        yield from _of_parquet(file) if file.suffix == ".parquet" else _of_folder(folder, file)


def _of_parquet(file: Path) -> Iterator[Item]:
    for number, record in enumerate(_rows(file, [*_Record.__struct_fields__])):
        place = f"{file}, row {number + 1}"
        row = _convert(record, _Record, place)
        yield _item(row, row.scenario, row.step, (file, number), place)


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """A Parquet file's rows, a few in memory at a time."""
    import pyarrow  # type: ignore[import-untyped]  # comes with `datasets`
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(file)
        lacking = set(columns) - set(table.schema_arrow.names)
        if lacking:
            raise RowError(f"{file}, field {', '.join(sorted(lacking))}: missing; it has {table.schema_arrow.names}")
        for batch in table.iter_batches(batch_size=16, columns=columns):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise RowError(f"{file}: is no Parquet file that can be read ({error})") from error


def _of_folder(folder: Path, file: Path) -> Iterator[Item]:
    try:
        records = msgspec.json.decode(file.read_bytes(), type=list[Any])
    except (OSError, msgspec.DecodeError) as error:
        raise RowError(f"{file}: expected a JSON list ({error})") from error
    for number, record in enumerate(records, 1):
        place = f"{file}, item {number}"
        row = _convert(record, _Instruction, place)
        images = folder / LAYOUT_IMAGES / file.stem / str(row.id)
        steps = {path: _STEP.fullmatch(path.name) for path in (sorted(images.iterdir()) if images.is_dir() else ())}
        found = [(int(match[1]), path) for path, match in steps.items() if match]
        if not found:
            raise RowError(f"{place}: no image {images / 'concat_opt_STEP.jpg'}")
        for step, path in found:
            yield _item(row, file.stem, step, path, place)


def _convert(record: Any, type: type[Any], place: str) -> Any:
    try:
        return msgspec.convert(record, type)
    except msgspec.ValidationError as error:
        what, _, field = str(error).partition(" - at `$.")
        raise RowError(f"{place}{', field ' + field.rstrip('`') if field else ''}: {what}") from error


def _item(row: _Instruction, scenario: str, step: int, image: Path | tuple[Path, int], place: str) -> Item:
    if scenario not in SCENARIOS:
        raise RowError(f"{place}, field scenario: {scenario!r} is none of {', '.join(SCENARIOS)}")
    if row.category not in POINTERS:
        raise RowError(f"{place}, field category: {row.category!r} is none of {', '.join(POINTERS)}")
    if not normalised(row.instruction):
        raise RowError(f"{place}, field instruction: holds no word")
    return Item(place, str(row.id), scenario, row.keywords, row.category, row.instruction.strip(), step, image)


def _chosen(items: Iterator[Item], step: int | None) -> list[Item]:
    chosen: dict[tuple[str, str], Item] = {}
    for item in items:
        earlier = chosen.get((item.scenario, item.id))
        if item.step == step or (step is None and (earlier is None or item.step > earlier.step)):
            chosen[item.scenario, item.id] = item
    return list(chosen.values())


def _queries(
    items: Sequence[Item], corpus: Path, test_share: float, seed: int
) -> tuple[dict[str, Query], list[LeftOut]]:
    """The query of each instruction, by its normalised text: one that is near, or its own."""
    path = corpus / QUERIES
    known = {query.id: query for query in (read_rows(path, Query) if path.exists() else [])}
    index = NearIndex(normalised(item.instruction) for item in items)
    for query in known.values():
        index.add(query.id, normalised(query.text))
    queries: dict[str, Query] = {}
    left_out: dict[str, LeftOut] = {}
    for item in items:
        text = normalised(item.instruction)
        if text in queries or query_id(text) in left_out:
            continue
        near = [known[found.id] for found in index.near(text)]
        if len({query.split for query in near}) > 1:
            ids = tuple(query.id for query in near)
            left_out[query_id(text)] = LeftOut(id=query_id(text), text=item.instruction, of=ids)
            continue
        if not near:
            split, category = split_of(text, test_share, seed), SCENARIOS[item.scenario]
            own = Query(id=query_id(text), text=item.instruction, source="hades", split=split, category=category)
            known[own.id] = own
            near = [own]
        queries[text] = near[0]
        index.add(near[0].id, text)
    return queries, list(left_out.values())


def _request(item: Item, query: Query, question: Literal["pointer", "plain"]) -> Request:
    name = f"{query.id}-hades-{item.scenario.lower()}-{item.id}"
    asked = item.instruction if question == "plain" else _pointed(item)
    return Request(
        id=name,
        query_id=query.id,
        query=item.instruction,
        source="hades",
        split=query.split,
        variant="hades",
        question=asked,
        image=f"{IMAGES}/hades/{name}-{item.step}.png",
        category=SCENARIOS[item.scenario],
    )


def _pointed(item: Item) -> str:
    """The instruction with its keywords left to the image."""
    if item.keywords and item.keywords in item.instruction:
        text = item.instruction.replace(item.keywords, POINTERS[item.category])
    else:
        text = f"{item.instruction} It is about what the image names."
    article = "an" if item.category == "object" else "a"
    return f"At its bottom the image names {article} {item.category}. {text}"


def _save(wanted: dict[Path | tuple[Path, int], Path]) -> None:
    for source, target in wanted.items():
        if isinstance(source, Path):
            save_picture(read_picture(source), target)
    for file in dict.fromkeys(source[0] for source in wanted if isinstance(source, tuple)):
        for number, record in enumerate(_rows(file, ["image"])):
            if (file, number) in wanted:
                save_picture(_picture(record["image"], f"{file}, row {number + 1}, field image"), wanted[file, number])


def _picture(value: Any, place: str) -> Image.Image:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise RowError(f"{place}: expected the bytes of an image, as Hugging Face keeps them")
    try:
        return decode_picture(data, media_type(data) or "image/png")
    except ImageError as error:
        raise RowError(f"{place}: {error}") from error
