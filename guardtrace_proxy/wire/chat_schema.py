"""Chat-completion chunks of a known shape, decoded in one go; anything else takes the slow path.

Shapes: OpenAI's API reference (chat/streaming), vLLM 0.32's recorded streams, DeepSeek, SGLang. A field that isn't
listed here makes decoding fail, and that is the point: text in a field that nobody knows must be found and audited.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

MAX_LABEL = 64
Label = Annotated[str, Meta(max_length=MAX_LABEL, pattern="^[^ ]*$")]
"""A word that says what something is. Some servers take a call's id from what the model wrote: a longer one is text."""


class FunctionDelta(Struct, forbid_unknown_fields=True, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, forbid_unknown_fields=True, gc=False):
    index: int | None = None
    id: Label | None = None
    type: Label | None = None
    function: FunctionDelta | None = None


class Delta(Struct, forbid_unknown_fields=True, gc=False):
    role: str | UnsetType | None = UNSET
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class Choice(Struct, forbid_unknown_fields=True, gc=False):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    logprobs: Raw | None = None
    finish_reason: str | None = None
    native_finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] | None = None


class Chunk(Struct, forbid_unknown_fields=True, gc=False):
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    provider: str | None = None
    obfuscation: str | None = None
    usage: dict[str, Any] | None = None
    choices: list[Choice] | None = None
    prompt_token_ids: Raw | None = None
    prompt_text: Raw | None = None


TOP_METADATA = frozenset(Chunk.__struct_fields__) | {"prompt_logprobs", "kv_transfer_params", "timings"}
"""Fields beside ``choices`` that hold no generated text."""
CHOICE_METADATA = frozenset(Choice.__struct_fields__) - {"delta"} | {"routed_experts"}

decode_chunk = msgspec.json.Decoder(Chunk).decode
