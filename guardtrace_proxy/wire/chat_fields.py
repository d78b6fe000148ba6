"""The fields of a chat completion's request: what becomes of each (docs/chat-completions.md has them in one table).

A field that isn't named here is refused, since it might change what the model reads (docs/decisions/007).
Sources: OpenAI's API reference, the protocols of vLLM 0.33 and SGLang, OpenRouter's and Groq's references, llama.cpp's
server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from guardtrace_proxy.wire.raw_json import RawFields, as_raw
from guardtrace_proxy.wire.request import REPLY_NAMES, check_known, refuse

OTHER_PIXELS = "the model would see other pixels than the auditor"
OTHER_PROMPT = "the model would read something else than the auditor"
BROUGHT_IN = "what it brings in reaches the model, and the auditor wouldn't see it"
NOT_ALL = "the model would read less of the request than the auditor"
OTHER_CACHE = "the model would go on from a context that the auditor hasn't seen"
REPEATS = "it repeats the reply where no redaction reaches"
NAMES_REPLY = "servers find replies by it, others' too: send the header x-request-id"

UNFOLLOWED = {
    "chat_template": "it changes what the model reads, and the auditor wouldn't see it",
    "documents": "they reach the model through its template, and the auditor wouldn't see them",
    "prompt_embeds": "the auditor can't read embeddings",
    "input_ids": OTHER_PROMPT,
    "prompt": OTHER_PROMPT,
    "data_sources": BROUGHT_IN,
    "plugins": BROUGHT_IN,
    "search_parameters": BROUGHT_IN,
    "web_search_options": BROUGHT_IN,
    "transforms": NOT_ALL,
    "truncate_prompt_tokens": NOT_ALL,
    "truncation_side": NOT_ALL,
    "session_params": OTHER_CACHE,
    "kv_transfer_params": OTHER_CACHE,
    "ec_transfer_params": OTHER_CACHE,
    "bootstrap_host": OTHER_CACHE,
    "bootstrap_port": OTHER_CACHE,
    "bootstrap_room": OTHER_CACHE,
    "mm_processor_kwargs": OTHER_PIXELS,
    "media_io_kwargs": OTHER_PIXELS,
    "images_config": OTHER_PIXELS,
    "max_dynamic_patch": OTHER_PIXELS,
    "min_dynamic_patch": OTHER_PIXELS,
    "vllm_xargs": "it speaks to extensions of the server, which may do anything",
    "custom_params": "it speaks to extensions of the server, which may do anything",
    "custom_logit_processor": "it is code that the server would run",
    "echo": "the prompt would come back as if it were generated",
    "prompt_logprobs": "what the model expects after each word of the prompt would come back unaudited",
    "return_hidden_states": REPEATS,
    "return_meta_info": REPEATS,
    "audio": "only text and images are audited",
    "store": "the provider would keep the reply as it was before the audit",
    **dict.fromkeys(sorted(REPLY_NAMES), NAMES_REPLY),
}
"""Request fields that are refused, and why."""

TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking", "thinking_budget", "reasoning_effort"})
"""``chat_template_kwargs`` that only switch thinking."""

TEXTS = (
    *("tools", "functions", "tool_choice", "function_call", "response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern"),
    *("regex", "ebnf", "grammar", "json_schema"),
)
"""Beside the messages: text that the model may read, so the auditor reads it too."""

SWITCHES = frozenset("reasoning_effort verbosity enable_thinking thinking_budget thinking_token_budget".split())
"""They say how to think. Some templates write them into the prompt, so they must be a number or a short word."""
THINKING_KEYS = frozenset({"type", "budget_tokens", "clear_thinking", "keep"})
REASONING_KEYS = frozenset({"effort", "enabled", "exclude", "max_tokens", "summary"})

TOOLS = ("function", "custom")
"""The kinds of tools that the client runs itself."""
NO_TOOL = f"only {' and '.join(TOOLS)} are supported: of a tool that the provider runs, {BROUGHT_IN}"

FLAGS = ("continue_final_message", "add_generation_prompt", "add_special_tokens")

SHAPES = frozenset({"messages", "model", "modalities", "n", "stream", "stream_options", "chat_template_kwargs"})

PASSED = frozenset(
    """
    best_of frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata moderation
    parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
    safety_identifier seed service_tier stop temperature top_logprobs top_p user

    allowed_token_ids bad_words cache_salt guided_decoding_backend ignore_eos include_stop_str_in_output length_penalty
    logprob_token_ids min_p min_tokens repetition_detection repetition_penalty return_prompt_text
    return_token_ids return_tokens_as_token_ids routed_experts_prompt_start skip_special_tokens
    spaces_between_special_tokens stop_token_ids stream_interval top_k use_beam_search watermarking

    extra_key lora_path no_stop_trim return_cached_tokens_details return_prompt_token_ids return_routed_experts
    routed_experts_start_len stop_regex

    models provider route top_a usage

    cache_prompt dry_allowed_length dry_base dry_multiplier dry_penalty_last_n dynatemp_exponent dynatemp_range
    mirostat mirostat_eta mirostat_tau n_predict repeat_last_n repeat_penalty samplers timings_per_token typical_p
    xtc_probability xtc_threshold

    do_sample random_seed
    """.split()
)
"""Sampling, limits, names and bookkeeping: OpenAI's, then what vLLM, SGLang, OpenRouter, llama.cpp and others add."""


class Forced(NamedTuple):
    """A field's value that would keep thinking from the audit, what goes upstream in its place, and what else may."""

    opts_out: Any
    sent: Any
    others: frozenset[Any]
    hides: bool
    """Whether the client asked not to see the thinking."""


FORCED = {
    "include_reasoning": Forced(False, True, frozenset({True}), hides=True),
    "reasoning.exclude": Forced(True, False, frozenset({False}), hides=True),
    "reasoning_format": Forced("hidden", "parsed", frozenset({"parsed", "auto", "deepseek"}), hides=True),
    # SGLang would put the thinking into the content, often without its opening tag (and some models' nowhere): it
    # would be judged as answer. In its own field it hides nothing.
    "separate_reasoning": Forced(False, True, frozenset({True}), hides=False),
    # SGLang would keep the thinking back until it is over, and lose one that never ends.
    "stream_reasoning": Forced(False, True, frozenset({True}), hides=False),
}
"""By path: how servers are told to think in secret (vLLM, OpenRouter, Groq, SGLang)."""

KNOWN = (
    frozenset(UNFOLLOWED) | frozenset(TEXTS) | SWITCHES | frozenset(FLAGS) | SHAPES | PASSED | {"thinking", "reasoning"}
) | {path for path in FORCED if "." not in path}
"""Every field that an operator needs no setting for."""

_WORD = re.compile(r"[A-Za-z0-9_.-]{0,24}")
MAX_WORDS = 8
"""Keys and words of what says little."""


def check_fields(request: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse fields that the auditor couldn't follow. ``allowed`` are the operator's own, which pass."""
    check_known(request, KNOWN, UNFOLLOWED, allowed)
    for field in SWITCHES:
        check_switch(request.get(field), field)
    for field, keys in (("thinking", THINKING_KEYS), ("chat_template_kwargs", TEMPLATE_KWARGS)):
        check_switches(request, field, keys)
    check_switches(request, "reasoning", REASONING_KEYS)
    modalities = request.get("modalities")
    if modalities is not None and modalities != ["text"]:
        refuse("modalities", 'only ["text"] is supported: nothing else is audited')
    _check_tools(request.get("tools"))
    check_flags(request)


def check_flags(request: Mapping[str, Any]) -> None:
    """Refuse flags that are neither true nor false: lenient servers would read something into them."""
    for field in FLAGS:
        if field in request and not isinstance(request[field], bool):
            refuse(field, "expected true or false")


def texts_beside(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tools, schemas and grammars as turns of their own, before the messages: the first to go where not all fits."""
    turns = []
    for key in TEXTS:
        value = request.get(key)
        if value and (key in ("tools", "functions") or not says_little(value)):
            turns.append((key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return turns


def forced_fields(request: Mapping[str, Any]) -> Iterator[str]:
    """The paths whose values would keep thinking from the audit; raises RequestError for values that nobody knows."""
    for path, forced in FORCED.items():
        value = _at(request, path)
        # Lenient servers take 0 and "false" for False too, so nothing passes but what is surely meant.
        known = value is not None and type(value) is type(forced.opts_out)
        if value is None or (known and value in forced.others):
            continue
        if not known or value != forced.opts_out:
            expected = "true or false" if isinstance(forced.sent, bool) else ", ".join(sorted(forced.others))
            refuse(path, f"expected {expected}")
        yield path


def force(body: bytes, paths: Collection[str]) -> bytes:
    """The body with these fields forced; everything else keeps its very bytes and its place."""
    if not paths:
        return body
    fields = msgspec.json.decode(body, type=RawFields)
    for path in paths:
        sent = as_raw(FORCED[path].sent)
        field, _, key = path.partition(".")
        if key:
            inner = msgspec.json.decode(fields[field], type=RawFields)
            sent = as_raw({**inner, key: sent})
        fields[field] = sent
    return msgspec.json.encode(fields)


def _is_plain(value: Any) -> bool:
    """Whether there is nothing to read in it: numbers, truth values, short words, and collections of such."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return True


def says_little(value: Any) -> bool:
    """Whether there is nothing to read in a label, a choice among tools or a reply's form. Many words say something,
    however short each is."""
    return _is_plain(value) and _words(value) <= MAX_WORDS


def _words(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_words, value.values()))
    if isinstance(value, list):
        return sum(map(_words, value))
    return isinstance(value, str)


def rest_of(fields: Mapping[str, Any], labels: Collection[str], known: Collection[str] = ()) -> Iterator[str]:
    """What is said beside the ``known`` fields: a template may show it to the model. ``labels`` say nothing, as long as
    they say little."""
    for key, value in fields.items():
        if key in known or not value or isinstance(value, (bool, int, float)) or (key in labels and says_little(value)):
            continue
        yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_switches(request: Mapping[str, Any], field: str, keys: Collection[str]) -> None:
    """Refuse an object with other keys than these, or other values than switches."""
    value = request.get(field)
    if value is None:
        return
    if not isinstance(value, dict):
        refuse(field, "expected an object")
    for key, inner in value.items():
        if key not in keys:
            refuse(f"{field}.{key[:64]}", "not supported, since it may change what the model reads")
        check_switch(inner, f"{field}.{key}")


def check_switch(value: Any, path: str) -> None:
    """Refuse what could be more than a number, a truth value or a short word."""
    if isinstance(value, (list, dict)) or not _is_plain(value):
        refuse(path, "expected a number, true, false or a short word")


def _check_tools(tools: Any) -> None:
    """Refuse tools that the provider runs. Without a type a tool is a function, where it says which."""
    if tools in (None, False, ""):
        return
    if not isinstance(tools, list):
        refuse("tools", "expected a list")
    for position, tool in enumerate(tools):
        if not isinstance(tool, dict):
            refuse(f"tools[{position}]", "expected an object")
        kind = tool.get("type")
        if kind not in TOOLS and not (kind is None and "function" in tool):
            refuse(f"tools[{position}].type", NO_TOOL)


def _at(request: Mapping[str, Any], path: str) -> Any:
    field, _, key = path.partition(".")
    value = request.get(field)
    return value.get(key) if key and isinstance(value, dict) else None if key else value
