"""Needs the environment that ``make test-vllm`` makes; elsewhere skipped, or failed where GUARDTRACE_VLLM=required."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

WITHOUT = "vLLM isn't installed here: run `make test-vllm`"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if not ours or importlib.util.find_spec("vllm") is not None:
        return
    if os.environ.get("GUARDTRACE_VLLM") == "required":
        raise pytest.UsageError(WITHOUT)
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=WITHOUT))
