"""Small corpora for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from guardtrace_trainer.rows import Annotation, Request, Trace, Vote, write_rows

LONG_ANALYSIS = "The request is about a box and nothing in the thinking goes beyond it."


def request(number: int, **fields: Any) -> Request:
    """Every third one has an image, every fifth is of the test split."""
    name = f"q{number:03}"
    given = {
        "id": f"{name}-text",
        "query_id": name,
        "query": f"How do I open box {number}?",
        "source": "boxes",
        "split": "test" if number % 5 == 4 else "train",
        "variant": "text" if number % 3 else "irrelevant",
        "question": f"How do I open box {number}?",
        "image": None if number % 3 else "images/red.png",
    }
    return Request(**(given | fields))


def write_requests(folder: Path, count: int) -> list[Request]:
    """``requests.jsonl`` with its image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "images" / "red.png")
    requests = [request(number) for number in range(count)]
    write_rows(folder / "requests.jsonl", requests)
    return requests


def trace(number: int = 0, **fields: Any) -> Trace:
    asked = request(number)
    given = {name: getattr(asked, name) for name in Request.__struct_fields__} | {
        "id": f"{asked.id}-m",
        "request_id": asked.id,
        "model": "m",
        "thinking": f"They want to open box {number}, so I tell them how.",
        "answer": "Lift the lid.",
        "finish_reason": "stop",
    }
    return Trace(**(given | fields))


def write_traces(folder: Path, count: int, **fields: Any) -> list[Trace]:
    write_requests(folder, count)
    traces = [trace(number, **fields) for number in range(count)]
    write_rows(folder / "traces.jsonl", traces)
    return traces


def annotations(*levels: float, judges: str = "abc") -> tuple[Annotation, ...]:
    return tuple(
        Annotation(judge=judge, level=level, analysis=f"{judge} says: {LONG_ANALYSIS}")
        for judge, level in zip(judges, levels, strict=True)
    )


def vote(number: int, *levels: float, **fields: Any) -> Vote:
    row = trace(number)
    given = {name: getattr(row, name) for name in Trace.__struct_fields__}
    return Vote(**(given | {"votes": fields.pop("votes", None) or annotations(*levels)} | fields))
