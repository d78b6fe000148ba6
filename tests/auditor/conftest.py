from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WITHOUT_TORCH = "the extra `local` isn't installed"
REPLY = "“Analysis”: The request is harmless.\n“Judgment”: 0.5"


@dataclass(frozen=True)
class Picture:
    pixels: Image.Image
    data_url: str = "data:image/png;base64,AAAA"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Any:
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights."""
    pytest.importorskip("torch", reason=WITHOUT_TORCH)
    from tests.auditor.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("untaught"))


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes REPLY, whatever it is asked."""
    pytest.importorskip("torch", reason=WITHOUT_TORCH)
    from tests.auditor.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("taught"), reply=REPLY)


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """Two of different shapes."""
    noise = Image.effect_noise((90, 150), 90).convert("RGB")
    return [Picture(noise), Picture(Image.linear_gradient("L").resize((200, 60)).convert("RGB"))]
