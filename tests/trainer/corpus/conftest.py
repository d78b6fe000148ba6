from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

QUERIES = (
    "How do I bake a large loaf of sourdough bread?",
    "Write a short poem about the old harbour at night.",
    "What are the best vegetables to grow on a balcony?",
    "Explain how to repair a bicycle tyre with simple tools.",
    "Which birds sing in the garden before sunrise?",
    "Describe the road from the village to the lake.",
    "Why does a kettle whistle when the water boils?",
    "Plan a birthday party for a child of six.",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Text images need matplotlib's fonts, and Parquet pyarrow: both come with the extra `train`."""
    if importlib.util.find_spec("matplotlib") and importlib.util.find_spec("pyarrow"):
        return
    skip = pytest.mark.skip(reason="the extra `train` isn't installed")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes objects as lines of a file."""

    def write(*rows: object, name: str = "queries.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture
def corpus(jsonl: Callable[..., Path], tmp_path: Path) -> Path:
    """A corpus of eight queries of one source."""
    from guardtrace_trainer.corpus.queries import import_queries

    folder = tmp_path / "corpus"
    import_queries([jsonl(*({"prompt": text} for text in QUERIES), name="eight.jsonl")], folder, "eight")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve images of several sizes and formats, one of them large, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for number in range(12):
        size = (2400, 1600) if number == 0 else (rng.randint(60, 300), rng.randint(60, 300))
        pixels = Image.linear_gradient("L").resize(size).convert("RGB")
        pixels.paste((20 * number, 255 - 20 * number, 90), (10, 10, 40, 40))
        pixels.save(folder / f"photo-{number:02}.{('png', 'jpg', 'webp')[number % 3]}")
    (folder / "README.txt").write_text("none")
    return folder
