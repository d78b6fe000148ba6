from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def words() -> Iterator[None]:
    """For tests that need the tokenizer and the embeddings; they ship with the embedded auditor."""
    for module in ("torch", "transformers", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} isn't installed: the extra `train` has it")
    import torch

    from guardtrace_trainer.nano import vocabulary

    if not (vocabulary._folder / "tokenizer.json").exists():
        pytest.skip("the embedded auditor's tokenizer isn't in the package")
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
