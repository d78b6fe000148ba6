"""The recordings, and what a reader must find in each. ``RECORDINGS`` are those of chat completions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.reply import Reply
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.replies import completion, dialect, message, response

FOLDER = Path(__file__).parent.parent / "recordings"
STARTS_OPEN = ThinkingStyle(starts_open=True)
APRIEL = ThinkingStyle("custom", starts_open=True, close="[BEGIN FINAL RESPONSE]")
SEED = ThinkingStyle("custom", open="<seed:think>", close="</seed:think>")


REPLIES: dict[str, Callable[[ThinkingStyle], Reply]] = {
    "chat": dialect,
    "completions": completion,
    "responses": response,
    "messages": lambda style: message(style, stops=["\n\nHuman:"]),
}


class Recording(NamedTuple):
    """Of each choice its segments, as ``replies.shown`` writes them, and its finish."""

    file: str
    choices: dict[int, tuple[str, str]]
    usage: dict[str, Any] | None = None
    """Some of the fields of the last usage."""
    style: ThinkingStyle = ThinkingStyle()
    dialect: str = "chat"
    """Of whose replies it is one; others than chat have a folder of their own."""

    def reply(self) -> Reply:
        """A reader for it."""
        return REPLIES[self.dialect](self.style)

    @property
    def is_stream(self) -> bool:
        return self.file.endswith(".sse")

    @property
    def data(self) -> bytes:
        return (FOLDER / self.file).read_bytes()

    def events(self, *pieces: bytes) -> list[Event]:
        """What the reader makes of it, cut in these pieces."""
        reply = self.reply()
        if not self.is_stream:
            return [reply.completion(self.data)]
        return [event for piece in pieces or (self.data,) for event in reply.feed(piece)] + reply.end()

    def chunks(self) -> list[Event]:
        """All but the end of the stream."""
        return [event for event in self.events() if event.kind is not EventKind.DONE]


TWO_CALLS = 'get_weather{"city": "Oslo"}get_weather{"city": "Bergen"}'

RECORDINGS = [
    Recording("vllm-reasoning.sse", {0: ("T:The sign says “Café”, so it is one.\n A:\n\nA café ☕.", "stop")}),
    Recording("vllm-reasoning.json", {0: ("T:The sign says “Café”.\n A:\n\nA café ☕.", "stop")}, {"total_tokens": 35}),
    Recording("vllm-reasoning-content.sse", {0: ("T:9.80 against 9.11. A:9.8 is greater.", "stop")}),
    Recording("vllm-logprobs.sse", {0: ("T:Two.\n A:\n\n2", "stop")}, {"total_tokens": 13, "completion_tokens": 6}),
    Recording("vllm-parallel-calls.sse", {0: (f"T:Both.\n A:\n\n{TWO_CALLS}", "tool_calls")}),
    Recording("sglang.sse", {0: ("T:A greeting.\n A:\n\nHello!", "stop")}, {"reasoning_tokens": 4}),
    Recording("sglang.json", {0: ("T:A greeting.\n A:Hello!", "stop")}, {"reasoning_tokens": 4}),
    Recording("deepseek.sse", {0: ("T:They greet me. A:Hello!", "stop")}, {"completion_tokens": 8, "total_tokens": 14}),
    Recording("deepseek.json", {0: ("T:They greet me. A:Hello!", "stop")}, {"prompt_cache_miss_tokens": 6}),
    Recording("openrouter.sse", {0: ("T:The sum is 4. A:Four.", "stop")}, {"cost": 0.000207}),
    Recording("openrouter.json", {0: ("T:The sum is 4. A:Four.", "stop")}, {"total_tokens": 21}),
    Recording("openrouter-encrypted.sse", {0: ("T:**Adding** A:Four.", "stop")}),
    Recording(
        "ollama.sse",
        {0: ('T:I need the weather. A:Let me look.get_weather{"city":"Oslo"}', "tool_calls")},
        {"total_tokens": 20},
    ),
    Recording("llama-cpp.sse", {0: ("T:A red car. A:Red.", "stop")}, {"completion_tokens": 7}),
    Recording("llama-cpp.json", {0: ("T:A red car. A:Red.", "stop")}, {"completion_tokens": 7}),
    Recording("lm-studio.sse", {0: ("T:They greet me. A:Hello!", "stop")}),
    Recording("lm-studio.json", {0: ("T:They greet me. A:Hello!", "stop")}, {"total_tokens": 14}),
    Recording("azure.sse", {0: ("A:Hello there.", "stop")}, {"total_tokens": 11}),
    Recording("azure.json", {0: ("A:Hello there.", "stop")}, {"total_tokens": 11}),
    Recording("azure-asynchronous.sse", {0: ("A:Hello.", "stop")}),
    Recording("usage-chunk.sse", {0: ("A:Hello", "stop")}, {"completion_tokens": 1, "total_tokens": 10}),
    Recording("tool-calls.sse", {0: ('T:I need the weather. A:get_weather{"city": "Zürich"}', "tool_calls")}),
    Recording("function-call.sse", {0: ('A:get_weather{"city": "Oslo"}', "function_call")}),
    Recording(
        "two-choices.sse",
        {0: ("T:Another way. A:Three.", "stop"), 1: ("T:One way or two. A:Two.", "length")},
    ),
    Recording(
        "two-choices-inline.sse",
        {0: ("[<think>] T:A. [</think>] A:One.", "stop"), 1: ("[<think>] T:B. [</think>] A:Two.", "stop")},
    ),
    Recording("think-tags.sse", {0: ("[<think>] T:Is 1 < 2? Yes  [</think>] A:It is.", "stop")}),
    Recording(
        "opening-tag-missing.sse", {0: ("T:A red car.\n [</think>] A:\n\nIt is red.", "stop")}, style=STARTS_OPEN
    ),
    Recording(
        "glm-4.1v.sse",
        {0: ("[<think>] T:Got it, a pier. [</think>] [<answer>] A:Title:\n- The pier [</answer>]", "stop")},
    ),
    Recording("glm-4.1v-unfinished.sse", {0: ("[<think>] T:Got it, a pier. The title needs 5 to 10 wo", "length")}),
    Recording(
        "kimi-vl.sse",
        {0: ("[◁think▷] T:Okay, the sea. ◁ Fine. [◁/think▷] A:Title: The sea<|im_assistant|>", "stop")},
    ),
    Recording(
        "apriel.sse",
        {
            0: (
                "T:Here are my reasoning steps:\nA red car.\n [[BEGIN FINAL RESPONSE]] A:\nIt is red.\n[END FINAL RESPONSE]",
                "stop",
            )
        },
        style=APRIEL,
    ),
    Recording(
        "operator-tags.sse",
        {0: ("[<seed:think>] T:A red car. [</seed:think>] A:It is red. <think> is text here.", "stop")},
        style=SEED,
    ),
    # A stop string that hits a tag: the block never closes, and half a tag is text of the phase it stands in.
    Recording("stop-at-closing-tag.sse", {0: ("[<think>] T:Is it red? Yes.", "stop")}),
    Recording("stop-inside-tag.sse", {0: ("[<think>] T:Is it red?</th", "stop")}),
    Recording("stop-inside-opening-tag.sse", {0: ("A:<thi", "stop")}),
]

COMPLETIONS = [
    Recording(f"completions/{file}", choices, usage, style, "completions")
    for file, choices, usage, style in [
        (
            "vllm-think-tags.sse",
            {0: ("[<think>] T:Is 9.11 less? Yes. [</think>] A:\n\nIt is “less”.", "stop")},
            {"completion_tokens": 12},
            ThinkingStyle(),
        ),
        ("vllm-logprobs.sse", {0: ("A:Two plus two", "length")}, None, ThinkingStyle()),
        (
            "vllm-two-prompts.sse",
            {0: ("[<think>] T:A. [</think>] A:One.", "stop"), 1: ("[<think>] T:B.Hm. [</think>] A:Two.", "stop")},
            None,
            ThinkingStyle(),
        ),
        ("prompt-opens-the-tag.sse", {0: ("T:A red car.\n [</think>] A:\n\nRed.", "stop")}, None, STARTS_OPEN),
        ("vllm.json", {0: ("[<think>] T:Two. [</think>] A:2", "stop")}, {"total_tokens": 9}, ThinkingStyle()),
        ("openai.json", {0: ("A: Four.", "stop")}, {"total_tokens": 7}, ThinkingStyle()),
    ]
]
RESPONSES = [
    Recording(f"responses/{file}", {0: (text, finish)}, usage, ThinkingStyle(), "responses")
    for file, text, finish, usage in [
        ("vllm-reasoning.sse", "T:Is 9.11 less? Yes. A:\n\nIt is “less”.", "completed", {"total_tokens": 21}),
        (
            "vllm-call.sse",
            'T:Look. A:get_weather{"city": "Zürich"}get_weather{"city": "Oslo"}',
            "completed",
            {"output_tokens": 12},
        ),
        ("vllm-inline.sse", "[<think>] T:Two. [</think>] A:2", "completed", {"total_tokens": 21}),
        ("openai-logprobs.sse", "A:Two plus", "completed", {"total_tokens": 21}),
        ("openai-summary.sse", "T:**Adding** two.Done. A:Four, it is.", "completed", {"total_tokens": 21}),
        ("openai-refusal.sse", "A:I can't help.", "completed", {"total_tokens": 21}),
        ("openai-custom-call.sse", "A:Let me see.shellls -l", "completed", {"total_tokens": 21}),
        ("openai-incomplete.sse", "A:One two", "incomplete", {"total_tokens": 21}),
        ("vllm.json", "T:Is it? Yes. A:It is.", "completed", {"total_tokens": 21}),
        ("openai-call.json", 'T:Adding. A:add{"a": 2}', "completed", {"total_tokens": 21}),
    ]
]
MESSAGES = [
    Recording(f"messages/{file}", {0: (text, finish)}, {"output_tokens": tokens}, ThinkingStyle(), "messages")
    for file, text, finish, tokens in [
        ("anthropic-text.sse", "A:Hello!", "end_turn", 15),
        ("anthropic-thinking.sse", "T:Is 1071 less? Yes. A:It is “less”.", "end_turn", 30),
        ("anthropic-call.sse", 'A:Let me look.get_weather{"location": "Zürich"}', "tool_use", 89),
        ("anthropic-redacted.sse", "A:Four.", "stop_sequence", 9),
        ("anthropic-refusal.sse", "A:One two", "refusal", 7),
        ("anthropic-call.json", 'T:Adding. A:Let me add.add{"a": 2}', "tool_use", 30),
        ("vllm-thinking.sse", "T:Is 9.11 less? Yes. A:It is.", "end_turn", 12),
        ("vllm-calls.sse", 'A:get_weather{"city": "Oslo"}get_timeSo.', "tool_use", 12),
        ("vllm-inline.sse", "[<think>] T:Two. [</think>] A:2", "end_turn", 12),
        ("vllm.json", "T:Is it? Yes. A:It is.", "end_turn", 12),
    ]
]
ALL = [*RECORDINGS, *COMPLETIONS, *RESPONSES, *MESSAGES]

BY_FILE = {recording.file: recording for recording in RECORDINGS}
STREAMS = [recording for recording in ALL if recording.is_stream]
recordings = pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.file)
streams = pytest.mark.parametrize("recording", STREAMS, ids=lambda recording: recording.file)
chat_recordings = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.file)
