"""Guards other than ours: what they are sent, over real HTTP, and how their documented replies are read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT
from guardtrace_proxy.policy.levels import Level
from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, ModelReply
from guardtrace_trainer.evaluation.data import ImageFile, Item
from guardtrace_trainer.evaluation.guards import MODELS, REQUESTS, make_guard, request_fields
from guardtrace_trainer.evaluation.guards.guardreasoner import read_result
from guardtrace_trainer.evaluation.guards.judge import read_judgment
from guardtrace_trainer.evaluation.guards.llama_guard import read_hazards
from guardtrace_trainer.evaluation.guards.moderation import read_moderation
from guardtrace_trainer.evaluation.guards.protocol import GuardSettingsError, GuardVerdict, UnreadableVerdict
from tests.trainer.evaluation.serving import Answer, Served, completion, write_image

SCORES = {"harassment": 0.01, "illicit": 0.62, "self-harm": 0.0, "violence": 0.4}


@pytest.fixture
def item(tmp_path: Path) -> Item:
    """With an image."""
    image = ImageFile(write_image(tmp_path / "a.png"))
    fields: dict[str, Any] = {"subset": "s", "kind": "unsafe", "category": "other", "level": 1.0}
    return Item(id="1", question="What is this?", image=image, thinking="Hm.\nSo.", answer="A page.", **fields)


def judge(name: str, answer: Answer, item: Item, prompt: Path | None = None) -> tuple[GuardVerdict, list[Any]]:
    """The verdict, and what the server was sent."""

    async def ask(url: str) -> GuardVerdict:
        model = MODELS[name] or "some-judge"
        request = request_fields(name, {})
        endpoint = Endpoint(name=name, base_url=url, model=model, stream=False, attempts=2, request=request)
        async with Client(endpoint) as client:
            return await make_guard(name, client, prompt).judge(item)

    with Served(answer) as served:
        return asyncio.run(ask(served.url)), served.requests


def moderation(*flags: bool) -> dict[str, Any]:
    results = [
        {
            "flagged": flag,
            "categories": {name: score > 0.5 for name, score in SCORES.items()},
            "category_scores": SCORES,
            "category_applied_input_types": {name: ["text", "image"] for name in SCORES},
        }
        for flag in flags
    ]
    return {"id": "modr-1", "model": "omni-moderation-latest", "results": results}


def test_moderation_gets_text_and_image(item: Item) -> None:
    verdict, requests = judge("openai-moderation", lambda path, body: (200, moderation(True)), item)
    assert (verdict.unsafe, verdict.level, verdict.scores) == (True, None, SCORES)
    assert item.image is not None
    image = {"type": "image_url", "image_url": {"url": item.image.data_url}}
    text = {"type": "text", "text": "What is this?\n\nHm.\nSo.\n\nA page."}
    assert requests == [("/v1/moderations", {"model": "omni-moderation-latest", "input": [image, text]})]


def test_moderation_is_asked_again_where_that_may_help(item: Item) -> None:
    answers = iter([(429, {"error": {"message": "slow down"}}), (200, moderation(False))])
    verdict, requests = judge("openai-moderation", lambda path, body: next(answers), item)
    assert (verdict.unsafe, len(requests)) == (False, 2)
    with pytest.raises(EndpointFailure, match="HTTP 401"):
        judge("openai-moderation", lambda path, body: (401, {"error": {"message": "no key"}}), item)


def test_moderations_that_can_not_be_read() -> None:
    assert read_moderation(json.dumps(moderation(False, True)).encode()).unsafe
    for body in (b"{}", b'{"results": []}', b'{"results": [{"flagged": "no", "category_scores": {}}]}', b"oops"):
        with pytest.raises(UnreadableVerdict, match="moderation"):
            read_moderation(body)


def test_llama_guard_gets_a_conversation_and_its_servers_template(item: Item) -> None:
    verdict, requests = judge("llama-guard-4", lambda path, body: (200, completion("\n\nunsafe\nS2,S9")), item)
    assert (verdict.unsafe, verdict.scores) == (True, {"S2": 1.0, "S9": 1.0})
    ((path, body),) = requests
    assert path == "/v1/chat/completions"
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 32, "meta-llama/Llama-Guard-4-12B")
    user, assistant = body["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == "What is this?"
    assert assistant == {"role": "assistant", "content": "Hm.\nSo.\n\nA page."}


@pytest.mark.parametrize(
    ("reply", "unsafe", "codes"),
    [
        ("safe", False, set()),
        ("\n\nsafe", False, set()),
        ("safe<|eot|>", False, set()),
        ("unsafe", True, set()),
        ("unsafe\nS9", True, {"S9"}),
        ("\n\nunsafe\nS1, S14 ", True, {"S1", "S14"}),
        ("Unsafe\ns10", True, {"S10"}),
    ],
)
def test_hazards_are_read(reply: str, unsafe: bool, codes: set[str]) -> None:
    verdict = read_hazards(reply)
    assert (verdict.unsafe, set(verdict.scores), verdict.level) == (unsafe, codes, None)


@pytest.mark.parametrize(
    "reply", ["", "I think it is safe", "safe or unsafe", "safe\nS9", "unsafe\nviolence", "unsafe S9"]
)
def test_hazards_that_can_not_be_read(reply: str) -> None:
    with pytest.raises(UnreadableVerdict, match="neither"):
        read_hazards(reply)


def test_a_judge_gets_the_auditors_own_layout(item: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    reply = completion("“Analysis”: The page asks for it.\n“Judgment”: 0.5")
    verdict, requests = judge("llm-judge", lambda path, body: (200, reply), item)
    assert (verdict.level, verdict.unsafe) == (Level.POTENTIALLY_HARMFUL, True)
    system, user = requests[0][1]["messages"]
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == (
        "Current Task Query: What is this?\nCurrent Task Thinking: Hm.\nSo.\nCurrent Task Cleaned Response: A page."
    )
    own = tmp_path / "own.txt"
    own.write_text("Judge this.\n")
    assert (
        judge("llm-judge", lambda path, body: (200, reply), item, own)[1][0][1]["messages"][0]["content"]
        == "Judge this."
    )
    kept = tmp_path / "guardtrace-proxy" / "published-prompt.txt"
    kept.parent.mkdir()
    kept.write_text("As published.")
    assert (
        judge("llm-judge", lambda path, body: (200, reply), item)[1][0][1]["messages"][0]["content"] == "As published."
    )


def test_judgments_are_read_as_our_own() -> None:
    assert read_judgment(ModelReply("", '"Analysis": Fine.\n"Judgment": 0', "stop")).unsafe is False
    assert read_judgment(ModelReply("thoughts", '{"Analysis": "x", "Judgment": 1}', "stop")).level is Level.HARMFUL
    for answer, finish in (
        ("Harmful.", "stop"),
        ("", "stop"),
        ('"Judgment": 0', "length"),
        ('"Judgment": 0.7', "stop"),
    ):
        with pytest.raises(UnreadableVerdict):
            read_judgment(ModelReply("", answer, finish))


RESULT = (
    "<think>\nStep 1 … it could say Response: harmful.\n</think>\n<result>\nRequest: harmful\nResponse: {}\n</result>"
)


def test_guardreasoner_gets_its_instruction_and_both_texts(item: Item, tmp_path: Path) -> None:
    prompt = tmp_path / "instruction.txt"
    prompt.write_text("You are a classifier.\n")
    reply = completion(RESULT.format("unharmful"))
    verdict, requests = judge("guardreasoner-vl", lambda path, body: (200, reply), item, prompt)
    assert (verdict.unsafe, verdict.scores) == (False, {"request": 1.0, "response": 0.0})
    system, user = requests[0][1]["messages"]
    assert system["content"] == "You are a classifier."
    assert user["content"][0]["type"] == "image_url"
    assert user["content"][1]["text"] == "Human user:\nWhat is this?\n\nAI assistant:\nHm.\nSo.\n\nA page.\n\n"


@pytest.mark.parametrize(
    ("word", "unsafe"), [("harmful", True), ("unharmful", False), ("harmless", False), ("None", False)]
)
def test_results_are_read_behind_the_reasoning(word: str, unsafe: bool) -> None:
    assert read_result(RESULT.format(word)).unsafe is unsafe
    assert read_result(RESULT.format(word).partition("</think>")[2]).unsafe is unsafe  # a server took the thinking out


@pytest.mark.parametrize(
    "reply",
    [
        "<think>Response: harmful",
        "<think>x</think> Response: harmful",
        "<result>Request: harmful</result>",
        RESULT.format("unclear"),
        "",
    ],
)
def test_results_that_can_not_be_read(reply: str) -> None:
    with pytest.raises(UnreadableVerdict, match="result"):
        read_result(reply)


def test_reasoningshield_gets_text_alone(item: Item, tmp_path: Path) -> None:
    prompt = tmp_path / "reasoningshield_prompt.txt"
    prompt.write_text("Audit the thought.")
    reply = completion('"Analysis": The thought lists steps.\n"Judgment": 1')
    verdict, requests = judge("reasoningshield", lambda path, body: (200, reply), item, prompt)
    assert (verdict.level, verdict.unsafe) == (Level.HARMFUL, True)
    assert requests[0][1]["messages"] == [
        {"role": "system", "content": "Audit the thought."},
        {"role": "user", "content": "Query: What is this?\nThought: Hm.\nSo.\n\nA page."},
    ]
    assert requests[0][1]["max_tokens"] == 1024


@pytest.mark.parametrize("name", ["guardreasoner-vl", "reasoningshield"])
def test_an_authors_prompt_is_asked_for(name: str, item: Item, tmp_path: Path) -> None:
    with pytest.raises(GuardSettingsError, match=r"its authors' own prompt: save it from .*, and give --prompt FILE"):
        judge(name, lambda path, body: (200, completion("")), item)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(GuardSettingsError, match="it is empty"):
        judge(name, lambda path, body: (200, completion("")), item, tmp_path / "empty.txt")
    with pytest.raises(GuardSettingsError, match="can't be read"):
        judge(name, lambda path, body: (200, completion("")), item, tmp_path / "none.txt")


def test_a_prompt_that_would_have_no_effect_is_refused(item: Item, tmp_path: Path) -> None:
    with pytest.raises(GuardSettingsError, match="takes no prompt"):
        judge("llama-guard-4", lambda path, body: (200, completion("safe")), item, tmp_path / "p.txt")


def test_requests_can_be_changed_and_thinned() -> None:
    given = {"temperature": None, "max_tokens": None, "max_completion_tokens": 3000}
    assert request_fields("llm-judge", given) == {"max_completion_tokens": 3000}
    assert MODELS.keys() == REQUESTS.keys()
