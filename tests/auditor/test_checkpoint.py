from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor import BUILT_IN  # noqa: E402
from guardtrace_proxy.auditor.calibration import Calibration  # noqa: E402
from guardtrace_proxy.auditor.checkpoint import load_checkpoint, weights_sha256  # noqa: E402
from guardtrace_proxy.auditor.processor import ImageOnlyProcessor, load_processor  # noqa: E402
from guardtrace_proxy.auditor.protocol import AuditorSettingsError  # noqa: E402
from tests.auditor.checkpoints import as_published  # noqa: E402


@pytest.fixture
def folder(untaught: Path, tmp_path: Path) -> Path:
    return shutil.copytree(untaught, tmp_path / "checkpoint")


def test_it_computes_in_float32_on_a_cpu_and_bfloat16_on_a_gpu(untaught: Path) -> None:
    checkpoint = load_checkpoint(str(untaught))
    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {expected}
    assert not checkpoint.model.training
    assert checkpoint.end_ids == {checkpoint.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_folder_in_the_published_layout_loads_as_well(folder: Path, pictures: list[object]) -> None:
    today = load_processor(str(folder))
    published = load_processor(str(as_published(folder)))
    assert type(published) is type(today) is ImageOnlyProcessor
    assert type(published.image_processor) is type(today.image_processor)
    assert published.chat_template == today.chat_template
    pixels = pictures[0].pixels  # type: ignore[attr-defined]
    ours = today.image_processor(images=[pixels], return_tensors="pt")
    theirs = published.image_processor(images=[pixels], return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])


def test_its_own_settings_are_read(folder: Path) -> None:
    settings = {
        "system_prompt": "Judge.",
        "max_context": 512,
        "purpose": "demonstration",
        "trained": {"seed": 0},
    }
    (folder / "guardtrace.json").write_text(json.dumps(settings), "utf-8")
    checkpoint = load_checkpoint(str(folder))
    assert (checkpoint.system_prompt, checkpoint.max_context, checkpoint.purpose) == (
        "Judge.",
        512,
        "demonstration",
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"max_context": "many"}', '{"max_context": 0}', '{"purpose": 1}'])
def test_broken_settings_are_refused(folder: Path, text: str) -> None:
    (folder / "guardtrace.json").write_text(text, "utf-8")
    with pytest.raises(AuditorSettingsError, match=r"guardtrace\.json"):
        load_checkpoint(str(folder))


def test_its_calibration_is_read(folder: Path) -> None:
    assert load_checkpoint(str(folder)).calibration is None
    (folder / "calibration.json").write_text('{"temperature": 2, "escalate_at": 0.3}', "utf-8")
    assert load_checkpoint(str(folder)).calibration == Calibration(temperature=2.0, escalate_at=0.3)


def test_a_broken_calibration_is_refused(folder: Path) -> None:
    (folder / "calibration.json").write_text('{"temperature": NaN, "escalate_at": 0.3}', "utf-8")
    with pytest.raises(AuditorSettingsError, match=r"calibration\.json\.temperature"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_an_incomplete_folder_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(AuditorSettingsError, match="can't be loaded"):
        load_checkpoint(str(folder))


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AuditorSettingsError, match="1 weights are missing"):
        load_checkpoint(str(folder))


def test_an_absent_model_is_refused_with_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AuditorSettingsError, match="Give a hub id, or a folder"):
        load_checkpoint(str(tmp_path / "nothing"))


def test_another_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}), "utf-8")
    with pytest.raises(AuditorSettingsError):
        load_checkpoint(str(folder))


def test_the_hash_of_the_weights_is_what_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(str(tmp_path)) is None
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    two = hashlib.sha256(b"two").hexdigest()
    assert weights_sha256(str(tmp_path)) == two
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    listed = f"{hashlib.sha256(b'one').hexdigest()}  model-1.safetensors\n{two}  model-2.safetensors\n"
    assert weights_sha256(str(tmp_path)) == hashlib.sha256(listed.encode()).hexdigest()
    assert weights_sha256("nobody/has-this") is None


def test_the_embedded_checkpoint_has_a_hash() -> None:
    weights = Path(inspect.getfile(load_checkpoint)).parent / "nano" / "model.safetensors"
    assert weights_sha256(BUILT_IN) == hashlib.sha256(weights.read_bytes()).hexdigest()
