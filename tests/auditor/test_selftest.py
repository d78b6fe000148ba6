"""The self-test passes what works and says in one sentence what doesn't, with what was expected and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

from guardtrace_proxy.auditor import selftest_audits
from guardtrace_proxy.auditor.protocol import AuditorError, AuditorSettingsError, Depth
from guardtrace_proxy.auditor.selftest import self_test
from guardtrace_proxy.auditor.selftest_audits import Report, SelfTestFailed
from tests.auditor.conftest import REPLY
from tests.server.scripted import http, model_server


def report_of(
    model: object, base_url: str | None = None, api_key: str | None = None, max_context: int | None = None
) -> Report:
    return anyio.run(self_test, str(model), base_url, api_key, 0.05, None, max_context)


def complaint(model: object, base_url: str | None = None) -> str:
    with pytest.raises(AuditorError) as caught:
        report_of(model, base_url)
    assert isinstance(caught.value, SelfTestFailed | AuditorSettingsError)
    return str(caught.value)


# Checkpoints


def test_a_whole_checkpoint_passes_with_its_figures(taught: Path) -> None:
    report = report_of(taught)
    assert report.facts["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert report.facts["labels"] == "0 and 0.5 begin alike: two reads"
    assert report.facts["image tokens"] == 12
    assert [(said.depth, said.trace, said.level) for said in report.verdicts] == [
        (depth, trace, "0.5") for depth in ("label", "annotate") for trace in ("benign", "harmful", "harmful image")
    ]
    assert [one.depth for one in report.speeds] == ["label", "annotate"]
    for one in report.speeds:
        assert one.audits_per_second > 0
        assert one.streams == pytest.approx(one.audits_per_second * 64 / 50)
    assert report.prefill_tokens_per_second
    assert report.decode_tokens_per_second
    assert report.notes == []


COMPLAINTS = {
    "tokenizer alone": ("can't be loaded as a Qwen2.5-VL checkpoint", "Give a hub id"),
    "another architecture": ("its model_type is llama, expected qwen2_5_vl", "Give a hub id"),
    "weights missing": ("weights are missing or of another shape", "Give a hub id"),
    "weights not numbers": ("unsure", "take a checkpoint"),
    "blind": ("two images give the very same label probabilities", "take a checkpoint whose vision weights"),
    "labels in pieces": ("must spell the labels 0 and 1 in one token each", ""),
    "more tokens than embeddings": ("the tokenizer knows", "take processor, tokenizer and weights from the same"),
    "template without images": ("leaves room for 0 of the 12 tokens of an image", "take the chat template"),
    "another merge size": ("merge_size is 4 in the image processor, expected 2", "take processor, tokenizer and"),
    "another patch size": ("patch_size is 16 in the image processor, expected 14", "take processor, tokenizer and"),
    "another image token": ("in the tokenizer, expected 7 as in config.json", "take processor, tokenizer and weights"),
}


def test_every_way_to_break_one_is_tried() -> None:
    pytest.importorskip("torch", reason="the extra `local` isn't installed")
    from tests.auditor.checkpoints import BROKEN

    assert COMPLAINTS.keys() == BROKEN.keys()


@pytest.mark.parametrize("how", COMPLAINTS)
def test_a_broken_checkpoint_is_refused_with_what_to_do(taught: Path, tmp_path: Path, how: str) -> None:
    from tests.auditor.checkpoints import BROKEN

    folder = shutil.copytree(taught, tmp_path / "checkpoint")
    BROKEN[how](folder)
    said = complaint(folder)
    for part in COMPLAINTS[how]:
        assert part in said
    assert "\n" not in said


def test_random_weights_are_told(untaught: Path) -> None:
    assert "unsure, the three labels carry" in complaint(untaught)


def test_an_absent_folder_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `local` isn't installed")
    assert "there is no such folder" in complaint(tmp_path / "nothing")


# Servers


def serving(
    tokens: Callable[[list[dict[str, Any]]], int | None], reply: str = REPLY, names: Iterable[str] = ("guard",)
) -> Callable[[dict[str, Any]], list[bytes]]:
    """A server that counts a prompt's tokens as ``tokens`` does, from the parts of its last message."""

    def answer(body: dict[str, Any]) -> list[bytes]:
        if not body:
            models = [{"id": name, "max_model_len": 4096} for name in names]
            return [http(200, json.dumps({"object": "list", "data": models}))]
        content = body["messages"][-1]["content"]
        counted = tokens(content if isinstance(content, list) else [{"type": "text", "text": content}])
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        usage = {"prompt_tokens": counted, "completion_tokens": min(20, body["max_tokens"])}
        return [http(200, json.dumps({"id": "a", "choices": [choice], **({"usage": usage} if counted else {})}))]

    return answer


def text_of(parts: list[dict[str, Any]]) -> int:
    return sum(len(part.get("text", "")) for part in parts) // 4 + 1


def seeing(parts: list[dict[str, Any]]) -> int:
    return text_of(parts) + 50 * sum(part["type"] == "image_url" for part in parts)


def reading_data(parts: list[dict[str, Any]]) -> int:
    return text_of(parts) + sum(len(part["image_url"]["url"]) for part in parts if part["type"] == "image_url") // 3


def test_a_server_that_works_passes_with_its_figures() -> None:
    with model_server(serving(seeing)) as server:
        report = report_of("guard", server.url, "secret")
    read = report.facts.pop("longest read")
    assert isinstance(read, int)
    assert read >= 7616
    assert report.facts == {"server": server.url, "context": 4096, "image tokens": 50}
    assert [(said.trace, said.level) for said in report.verdicts if said.depth == "annotate"] == [
        ("benign", "0.5"),
        ("harmful", "0.5"),
        ("harmful image", "0.5"),
    ]
    assert report.speeds[-1].audits_per_second > 0
    assert report.prefill_tokens_per_second
    assert report.decode_tokens_per_second
    assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer secret"}


def test_a_server_that_doesnt_count_tokens_passes_with_a_note() -> None:
    with model_server(serving(lambda _: None)) as server:
        report = report_of("guard", server.url)
    assert any("an image counts couldn't be checked" in note for note in report.notes)
    assert (report.prefill_tokens_per_second, report.decode_tokens_per_second) == (None, None)


def dropping(parts: list[dict[str, Any]]) -> int:
    """A word is a token, what is over 3000 tokens is dropped unsaid."""
    words = sum(len(part.get("text", "").split()) for part in parts)
    return min(words + 50 * sum(part["type"] == "image_url" for part in parts), 3000)


def test_a_server_that_drops_text_is_refused_and_passes_with_the_context_that_it_has() -> None:
    with model_server(serving(dropping), answers_trials=False) as server:
        assert "set auditor.max_context to 3000 or less" in complaint("guard", server.url)
        assert report_of("guard", server.url, max_context=3000).facts["longest read"] == 2565


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (serving(text_of), "so images aren't read: expected more; serve a vision-language model"),
        (serving(reading_data), "so their data is read as text: expected as many; serve a vision-language model"),
        (serving(seeing, names=["other"]), "the server serves other, expected guard: give the name that it serves"),
        (serving(seeing, names=[]), "the server serves nothing, expected guard"),
        (
            serving(seeing, reply="It looks fine."),
            "unreadable, the auditor's reply neither ends nor begins with a judg",
        ),
        (lambda _: [http(500, "{}")], "answered with HTTP status 500, expected 200: look at the server's log"),
        (lambda _: [http(200, "<html>")], "didn't answer with JSON: expected an OpenAI-compatible server"),
        (lambda _: [http(200, "[]")], "didn't answer with a JSON object"),
        (lambda _: [http(200, '{"data": 5}')], "/models didn't answer with a list of models"),
        (lambda _: [http(200, '{"data": [5]}')], "the server serves nothing, expected guard"),
        (lambda _: [], "can't be reached"),
    ],
)
def test_a_server_that_doesnt_work_is_refused_with_what_to_do(script: Any, said: str) -> None:
    with model_server(script) as server:
        assert said in complaint("guard", server.url)


def test_an_auditor_that_hangs_while_its_speed_is_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_audits, "AUDIT_SECONDS", 0.05)

    class Hanging:
        async def open(self, _: object) -> Hanging:
            return self

        async def judge(self, *_: object) -> None:
            await anyio.sleep_forever()

        async def aclose(self) -> None:
            pass

    async def run() -> None:
        with anyio.fail_after(20), pytest.raises(SelfTestFailed, match=r"timeout, no verdict within 0\.05 s"):
            await selftest_audits.speed(Hanging(), Depth.ANNOTATE, 0.05)  # type: ignore[arg-type]

    anyio.run(run)
