"""Checkpoints that bring code: each is refused with its reason, and not a line of theirs runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.checkpoint import load_checkpoint  # noqa: E402
from guardtrace_proxy.auditor.layout import Layout  # noqa: E402
from guardtrace_proxy.auditor.protocol import AuditorSettingsError  # noqa: E402

MARKER = "ran.txt"


@pytest.fixture
def folder(untaught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def nobody_is_asked(question: str = "") -> str:
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", nobody_is_asked)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return shutil.copytree(untaught, tmp_path / "checkpoint")


class Bomb:
    """Unpickled, it writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.marker, "ran")


def marker_of(folder: Path) -> Path:
    return folder.parent / MARKER


def pickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Bomb(marker_of(folder))))


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(marker_of(folder))}, folder / "pytorch_model.bin")


def pickle_in_an_index(folder: Path) -> None:
    pickle_alone(folder)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def pickle_named_safetensors(folder: Path) -> None:
    pickled(folder, "model.safetensors")


def torch_pickle_named_safetensors(folder: Path) -> None:
    torch.save(Bomb(marker_of(folder)), folder / "model.safetensors")


def pickle_in_the_safetensors_index(folder: Path) -> None:
    pickle_alone(folder)
    indexed(folder, "pytorch_model.bin")


def pickle_by_the_config(folder: Path) -> None:
    pickle_alone(folder)
    changed(folder, "config.json", transformers_weights="pytorch_model.bin")


def indexed(folder: Path, name: str) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def moved_out(folder: Path, name: str = "../elsewhere.safetensors") -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    indexed(folder, name)


def changed(folder: Path, name: str, **more: object) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **more}), "utf-8")


def code(folder: Path) -> None:
    text = f"from pathlib import Path\nPath({str(marker_of(folder))!r}).write_text('ran')\nclass Own: pass\n"
    (folder / "own.py").write_text(text)


def own_code(name: str, key: str, **more: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        code(folder)
        changed(folder, name, auto_map={key: "own.Own"}, **more)

    return change


def nested_code(folder: Path) -> None:
    code(folder)
    changed(folder, "processor_config.json", image_processor={"auto_map": {"AutoImageProcessor": "own.Own"}})


def adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder.parent / "elsewhere"), "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    pickled(folder, "adapter_model.bin")


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights in a pickle": (pickle_alone, "model.safetensors"),
    "weights in pickles with an index": (pickle_in_an_index, "safetensors"),
    "a pickle that is named safetensors": (pickle_named_safetensors, "aren't safetensors"),
    "torch's pickle that is named safetensors": (torch_pickle_named_safetensors, "aren't safetensors"),
    "a pickle in the index": (pickle_in_the_safetensors_index, "names files that aren't safetensors"),
    "a pickle that the config names": (pickle_by_the_config, "from elsewhere"),
    "an index that leads out": (moved_out, "in the checkpoint's own folder"),
    "an index with an absolute path": (lambda folder: moved_out(folder, str(folder.parent / "elsewhere.safetensors")), "own folder"),
    "an index that is no index": (lambda folder: changed(folder, "model.safetensors.index.json", weight_map=[1]), "own folder"),
    "a model's code": (own_code("config.json", "AutoModel"), r"config\.json names code of its own \(auto_map\)"),
    "a config's code": (own_code("config.json", "AutoConfig", model_type="own"), "names code of its own"),
    "a tokenizer's code": (own_code("tokenizer_config.json", "AutoTokenizer", tokenizer_class="Own"), "names code of its own"),
    "a processor's code": (own_code("processor_config.json", "AutoProcessor"), "names code of its own"),
    "an image processor's code": (own_code("preprocessor_config.json", "AutoImageProcessor"), "names code of its own"),
    "code within a processor's part": (nested_code, "names code of its own"),
    "an adapter": (adapter, "merge it into its base"),
    "a part from elsewhere": (lambda folder: changed(folder, "processor_config.json", audio_tokenizer={"audio_tokenizer_name_or_path": "x/y"}), "from elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nothing_of_it_runs(folder: Path, name: str) -> None:
    change, told = CASES[name]
    change(folder)
    with pytest.raises(AuditorSettingsError, match=told):
        load_checkpoint(str(folder))
    assert not marker_of(folder).exists()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / MARKER)))
    assert (tmp_path / MARKER).exists()


def test_attention_is_ours_whatever_the_config_names(folder: Path) -> None:
    changed(folder, "config.json", attn_implementation="someone/kernels")
    assert load_checkpoint(str(folder)).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'].open('MARKER', 'w') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% endfor %}",
    ],
)
def test_a_chat_template_reaches_nothing_but_what_it_is_given(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template.replace("MARKER", str(marker_of(folder))), "utf-8")
    layout = Layout(load_checkpoint(str(folder)).processor)
    with pytest.raises(AuditorSettingsError, match="chat template can't be rendered"):
        layout.prompt("Judge.", "A question.", [])
    assert not marker_of(folder).exists()


def test_a_text_is_never_rendered(folder: Path) -> None:
    layout = Layout(load_checkpoint(str(folder)).processor)
    text = "{{ 7 * 191 }} {% raw %} {{ messages }}"
    assert text in layout.decode(layout.prompt("Judge.", text, []))
