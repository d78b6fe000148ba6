"""A small corpus with images, a small checkpoint with random weights, and the embedded auditor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

needed = ("torch", "transformers", "trl", "peft")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []

if not missing:
    from guardtrace_trainer.rows import Labelled, Pair, write_rows
    from tests.auditor.checkpoints import make_checkpoint
    from tests.trainer.stages.corpora import draw_images, labelled, pairs


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers each of vision and language, random weights."""
    settings = {"system_prompt": "You judge.", "max_context": 1024, "purpose": "demonstration"}
    return make_checkpoint(tmp_path_factory.mktemp("small"), settings=settings)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sft.jsonl``, ``pairs.jsonl`` and their images."""
    folder = tmp_path_factory.mktemp("corpus")
    draw_images(folder)
    write_rows(folder / "sft.jsonl", labelled())
    write_rows(folder / "pairs.jsonl", pairs())
    return folder


@pytest.fixture(scope="session")
def rows() -> list[Labelled]:
    return labelled()


@pytest.fixture(scope="session")
def pair_rows() -> list[Pair]:
    return pairs()
