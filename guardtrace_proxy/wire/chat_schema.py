"""Chat-completion chunks of a known shape, decoded in one go; anything else takes the slow path.

The sources of the shapes are in ``docs/chat-servers.md``. A field that isn't listed here, or isn't of the type that
stands here, makes decoding fail, and that is the point: text where nobody expects any must be found and audited. The
slow path takes the same types for what is metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

THINKING_FIELDS = ("reasoning", "reasoning_content", "thinking")
MAX_LABEL = 64
LABEL = re.compile(rf"[!-~]{{0,{MAX_LABEL}}}")
Label = Annotated[str, Meta(max_length=MAX_LABEL, pattern=r"^[!-~]*\Z")]
"""A word that says what something is. Some servers take a call's id from what the model wrote: a longer one is text."""
Name = Annotated[str, Meta(max_length=256)]
"""Of a model, a provider, a reason to stop. ``stop_reason`` and ``matched_stop`` repeat the request's own ``stop``."""
Padding = Annotated[str, Meta(max_length=4096, pattern="^[A-Za-z0-9]*$")]
Base64 = Annotated[str, Meta(pattern="^[A-Za-z0-9+/_-]*={0,2}$")]
Key = Annotated[str, Meta(max_length=MAX_LABEL, pattern=r"^[A-Za-z0-9_.:$-]*\Z")]
MAX_SHORT = 16
Short = Annotated[str, Meta(max_length=MAX_SHORT)]
"""A role, or a word in the usage."""
Usage = dict[Key, int | float | bool | Short | dict[Key, int | float | bool | Short | None] | None]
"""Counts and costs, one level of details deep; Perplexity says there how large its search context is, in a word. (A
string with a pattern must not stand beside a dict: msgspec 0.22 then crashes the interpreter.)"""


class Likely(Struct, forbid_unknown_fields=True, gc=False):
    """A token and how likely it was. ``id`` is llama.cpp's."""

    token: Name
    logprob: float | None = None
    bytes: list[int] | None = None
    id: int | None = None


class Sampled(Likely, forbid_unknown_fields=True, gc=False):
    top_logprobs: list[Likely] | None = None


class Logprobs(Struct, forbid_unknown_fields=True, gc=False):
    content: list[Sampled] | None = None
    reasoning_content: list[Sampled] | None = None
    refusal: list[Sampled] | None = None

    @property
    def tokens(self) -> list[str]:
        """What was sampled, in order."""
        return [each.token for each in (*(self.reasoning_content or ()), *(self.content or ()), *(self.refusal or ()))]


class FilterVerdict(Struct, forbid_unknown_fields=True, gc=False):
    """What one of Azure's filters says. Citations and messages have no place here: they are text."""

    filtered: bool
    severity: Literal["safe", "low", "medium", "high"] | None = None
    detected: bool | None = None


class FilterVerdicts(Struct, forbid_unknown_fields=True, gc=False):
    hate: FilterVerdict | None = None
    self_harm: FilterVerdict | None = None
    sexual: FilterVerdict | None = None
    violence: FilterVerdict | None = None
    jailbreak: FilterVerdict | None = None
    indirect_attack: FilterVerdict | None = None
    profanity: FilterVerdict | None = None
    protected_material_text: FilterVerdict | None = None
    protected_material_code: FilterVerdict | None = None
    ungrounded_material: FilterVerdict | None = None


class PromptVerdicts(Struct, forbid_unknown_fields=True, gc=False):
    prompt_index: int
    content_filter_results: FilterVerdicts | None = None


class FilterOffsets(Struct, forbid_unknown_fields=True, gc=False):
    check_offset: int | None = None
    start_offset: int | None = None
    end_offset: int | None = None


class Timings(Struct, forbid_unknown_fields=True, gc=False):
    """llama.cpp's, as is the progress."""

    cache_n: int | None = None
    prompt_n: int | None = None
    prompt_ms: float | None = None
    prompt_per_token_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None
    predicted_per_token_ms: float | None = None
    predicted_per_second: float | None = None
    draft_n: int | None = None
    draft_n_accepted: int | None = None


class Progress(Struct, forbid_unknown_fields=True, gc=False):
    total: int | None = None
    cache: int | None = None
    processed: int | None = None
    time_ms: float | None = None


class Stats(Struct, forbid_unknown_fields=True, gc=False):
    """LM Studio's speed."""

    tokens_per_second: float | None = None
    time_to_first_token: float | None = None
    generation_time: float | None = None
    stop_reason: (
        Literal[
            "userStopped",
            "modelUnloaded",
            "failed",
            "eosFound",
            "stopStringFound",
            "toolCalls",
            "maxPredictedTokensReached",
            "contextLengthReached",
        ]
        | None
    ) = None
    draft_model: Label | None = None
    total_draft_tokens_count: int | None = None
    accepted_draft_tokens_count: int | None = None
    rejected_draft_tokens_count: int | None = None
    ignored_draft_tokens_count: int | None = None


class ModelInfo(Struct, forbid_unknown_fields=True, gc=False):
    arch: Label | None = None
    quant: Label | None = None
    format: Label | None = None
    context_length: int | None = None


class Runtime(Struct, forbid_unknown_fields=True, gc=False):
    name: Label | None = None
    version: Label | None = None
    supported_formats: list[Label] | None = None


class Metadata(Struct, forbid_unknown_fields=True, gc=False):
    """SGLang's."""

    weight_version: Label | None = None


class FunctionDelta(Struct, forbid_unknown_fields=True, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, forbid_unknown_fields=True, gc=False):
    index: int | None = None
    id: Label | None = None
    type: Label | None = None
    function: FunctionDelta | None = None


class Delta(Struct, forbid_unknown_fields=True, gc=False):
    role: Short | UnsetType | None = UNSET
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class Choice(Struct, forbid_unknown_fields=True, gc=False):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    logprobs: Logprobs | None = None
    finish_reason: Name | None = None
    native_finish_reason: Name | None = None
    stop_reason: int | Name | None = None
    matched_stop: int | Name | None = None
    token_ids: list[int] | None = None
    content_filter_results: FilterVerdicts | None = None
    content_filter_offsets: FilterOffsets | None = None


class Head(Struct, forbid_unknown_fields=True, gc=False):
    """What stands beside the choices."""

    id: Name | None = None
    object: Name | None = None
    created: int | None = None
    model: Name | None = None
    system_fingerprint: Name | None = None
    service_tier: Name | None = None
    provider: Name | None = None
    obfuscation: Padding | None = None
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    prompt_filter_results: list[PromptVerdicts] | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    stats: Stats | None = None


class Chunk(Head, forbid_unknown_fields=True, gc=False):
    choices: list[Choice] | None = None


TOP_METADATA: dict[str, Any] = {
    **get_type_hints(Head, include_extras=True),
    "choices": Any,
    "model_info": ModelInfo | None,
    "runtime": Runtime | None,
    "metadata": Metadata | None,
    "prompt_logprobs": None,
    "kv_transfer_params": None,
}
"""Fields beside ``choices``, with the type of a value that holds no generated text. The last two say something only
where a request asks for it, which is refused."""
CHOICE_METADATA: dict[str, Any] = {
    **get_type_hints(Choice, include_extras=True),
    "routed_experts": Base64 | None,
}
del CHOICE_METADATA["delta"]
_TOP = msgspec.defstruct("Top", [(name, kind, None) for name, kind in TOP_METADATA.items()])
_CHOICE = msgspec.defstruct("ChoiceMetadata", [(name, kind, None) for name, kind in CHOICE_METADATA.items()])


def unknown_beside_choices(event: dict[str, Any]) -> list[str]:
    """The fields of an event that may hold generated text, other than ``choices``."""
    return unknown_fields(event, _TOP, TOP_METADATA)


def unknown_of_choice(choice: dict[str, Any]) -> list[str]:
    """The fields of a choice that may hold generated text, other than ``delta``."""
    return unknown_fields(choice, _CHOICE, CHOICE_METADATA)


def named_by(event: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those fields of an event that are named so and hold no generated text."""
    return {name: event[name] for name in names if name in event and is_of_type(event[name], TOP_METADATA[name])}


def unknown_fields(found: dict[str, Any], whole: type[Struct], types: dict[str, Any]) -> list[str]:
    """The fields that aren't of their type, or have none. ``whole`` is a struct of all the types."""
    # All at once, since this is the slow path's main cost; one by one only where something is wrong.
    is_usual = is_of_type(found, whole)
    return [key for key in found if not (key in types and (is_usual or is_of_type(found[key], types[key])))]


def is_of_type(value: Any, type: Any) -> bool:
    """Whether a decoded value is of a type that stands here."""
    try:
        msgspec.convert(value, type)
    except msgspec.ValidationError:
        return False
    return True


decode_chunk = msgspec.json.Decoder(Chunk).decode
