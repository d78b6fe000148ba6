"""The requests of the small recipe: questions of its corpus with the pictures that belong to them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from guardtrace_trainer.nano import render
from guardtrace_trainer.nano.authored import SAFE
from guardtrace_trainer.nano.corpus import Sample, make_sample, whole
from guardtrace_trainer.nano.scripted import Truth
from guardtrace_trainer.nano.wording import corpus_hash
from guardtrace_trainer.rows import Query, Request, Variant, read_rows
from guardtrace_trainer.steps import Step

SOURCE = "nano"


def sample_of(seed: int, number: int) -> Sample:
    """Trace ``number`` of a seed."""
    return make_sample(random.Random(f"trace {seed} {number}"))


def expand(folder: Path, *, count: int, seed: int, telling_harmless: float = 1.0) -> None:
    """Write ``queries.jsonl``, ``requests.jsonl`` and ``images/``: ``count`` requests, no two alike, and
    ``telling_harmless`` of the harmless ones in words whose traces give something."""
    step = Step(
        folder,
        "expand",
        settings={
            "source": SOURCE,
            "count": count,
            "seed": seed,
            "telling_harmless": telling_harmless,
            "corpus": corpus_hash(),
        },
    )
    if step.done:
        return
    images = folder / "images"
    images.mkdir(exist_ok=True)
    requests = list(_requests(folder, count, seed, telling_harmless))
    queries = [
        Query(id=request.query_id, text=request.query, source=SOURCE, split=request.split) for request in requests
    ]
    variants = {
        name: sum(request.variant == name for request in requests)
        for name in ("text", "irrelevant", "aligned", "figstep")
    }
    step.finish({"queries.jsonl": queries, "requests.jsonl": requests}, requests=len(requests), variants=variants)


def _requests(folder: Path, count: int, seed: int, telling_harmless: float) -> Iterator[Request]:
    seen: set[str] = set()
    number = made = 0
    while made < count:
        sample = sample_of(seed, number)
        alike = sample.picture is None and sample.question in seen
        left_out = _is_telling_harmless(sample) and _share(seed, number) >= telling_harmless
        if not alike and not left_out:
            seen.add(sample.question)
            made += 1
            yield _request(folder, sample, seed, number)
        number += 1


def _is_telling_harmless(sample: Sample) -> bool:
    return sample.cue == "text" and not sample.harm and whole(sample).strength > SAFE


def _share(seed: int, number: int) -> float:
    return random.Random(f"kept {seed} {number}").random()


def _request(folder: Path, sample: Sample, seed: int, number: int) -> Request:
    name = f"{SOURCE}-{number:05d}"
    image = None
    if sample.picture is not None:
        image = f"images/{name}.png"
        drawing = render.render(sample.picture, random.Random(f"picture {seed} {number}"))
        (folder / image).write_bytes(_png(drawing))
    return Request(
        id=name,
        query_id=f"{name}-query",
        query=sample.question,
        source=SOURCE,
        split="train",
        variant=_variant(sample),
        question=sample.question,
        image=image,
    )


def _variant(sample: Sample) -> Variant:
    if sample.picture is None:
        return "text"
    if sample.cue == "text":
        return "irrelevant"
    return "aligned" if sample.cue == "pictogram" else "figstep"


def _png(drawing: render.Drawing) -> bytes:
    file = io.BytesIO()
    Image.fromarray(drawing.pixels).save(file, "PNG")
    return file.getvalue()


def truth_of(folder: Path, seed: int) -> Truth:
    """What the scripted models know of the requests that :func:`expand` wrote with the same seed."""

    def known() -> Iterator[tuple[str, bytes | None, Sample]]:
        for request in read_rows(folder / "requests.jsonl", Request):
            number = int(request.id.rpartition("-")[2])
            image = None if request.image is None else (folder / request.image).read_bytes()
            yield request.question, image, sample_of(seed, number)

    return Truth(known())
