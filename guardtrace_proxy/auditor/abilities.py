"""What an auditor's server can do beyond the standard, found out by asking it: never assumed, never configured.

A server is taken for vLLM if ``/tokenize`` beside its ``/v1`` answers for chats. Others are sent standard fields alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from guardtrace_proxy.auditor.guard_server import UNREADABLE, GuardServer, completion_of, reason_of, refusal
from guardtrace_proxy.auditor.labels import JUDGMENT_OPENING, LabelTokens
from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError
from guardtrace_proxy.auditor.served_labels import AFTER_ZERO, ServedLabels, positions_of
from guardtrace_proxy.policy.levels import Level

OPENINGS = (JUDGMENT_OPENING, JUDGMENT_OPENING.rstrip())
"""The second for tokenizers that spell a space and the digit after it in one token."""
TRIAL = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "What is 2 + 2?"}]
FIRST, LATER = 0, 1
"""Priorities; vLLM serves the smaller number first."""


class _Tokens(msgspec.Struct):
    tokens: list[int]
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Abilities:
    """``lacking`` says what was seen where ``labels`` is None. ``max_context`` is the server's own, in tokens."""

    is_vllm: bool = False
    takes_priority: bool = False
    max_context: int | None = None
    labels: ServedLabels | None = None
    lacking: str = ""

    def extras(self, salt: str, priority: int) -> dict[str, Any]:
        """Fields for vLLM: whose prefixes may be shared, and which audits go first."""
        if not self.is_vllm:
            return {}
        return {"cache_salt": salt, "priority": priority} if self.takes_priority else {"cache_salt": salt}


class _CantDo(Exception):
    """The server answered, and not as vLLM does."""


async def learn(server: GuardServer, model: str) -> Abilities:
    """Ask the server what it can do.

    Raises:
        AuditorFailure: it can't be reached, or is too busy to answer.
    """
    try:
        tokens = await _tokenize(server, model, _begun(OPENINGS[0]))
    except _CantDo as error:
        return Abilities(lacking=str(error))
    try:
        labels = await _find_labels(server, model)
        takes_priority = await _try_label_read(server, model, labels)
    except (_CantDo, AuditorSettingsError) as error:
        return Abilities(is_vllm=True, max_context=tokens.max_model_len, lacking=str(error))
    return Abilities(True, takes_priority, tokens.max_model_len, labels)


async def count_tokens(server: GuardServer, model: str, messages: Sequence[Any]) -> int | None:
    """Tokens of a chat's prompt as a vLLM counts them; None where it doesn't answer so."""
    try:
        return len((await _tokenize(server, model, {"messages": messages})).tokens)
    except (_CantDo, AuditorFailure):
        return None


async def _find_labels(server: GuardServer, model: str) -> ServedLabels:
    spelled = [(await _tokenize(server, model, _begun(JUDGMENT_OPENING + level.label))).tokens for level in Level]
    labels, zero = LabelTokens.from_spellings(spelled), spelled[0]
    closed = (await _tokenize(server, model, {**_begun(AFTER_ZERO), "continue_final_message": False})).tokens
    for opening in OPENINGS:
        begun = (await _tokenize(server, model, _begun(opening))).tokens
        if begun == labels.opening and len(closed) > len(zero) and closed[: len(zero)] == zero:
            return ServedLabels(opening, labels, closed[len(zero)])
    raise _CantDo("its chat template doesn't go on with an assistant's turn that was begun (continue_final_message)")


async def _try_label_read(server: GuardServer, model: str, labels: ServedLabels) -> bool:
    """Whether it takes priorities."""
    body = {"model": model, "cache_salt": "trial", **labels.request(TRIAL)}
    url = f"{server.url}/chat/completions"
    takes_priority = True
    status, reply = await server.post(url, {**body, "priority": LATER})
    if status == 400:
        takes_priority = False
        status, reply = await server.post(url, body)
    if status != 200:
        raise _answered("POST /v1/chat/completions with logprob_token_ids", status, reply)
    try:
        labels.shares(positions_of(completion_of(reply))[0])
    except AuditorFailure:
        raise _CantDo("it answered without the logprobs of the tokens it was asked about (logprob_token_ids)") from None
    return takes_priority


def _begun(text: str) -> dict[str, Any]:
    """A chat whose last turn is the assistant's, to be gone on with."""
    messages = [*TRIAL, {"role": "assistant", "content": text}]
    return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


async def _tokenize(server: GuardServer, model: str, chat: dict[str, Any]) -> _Tokens:
    status, reply = await server.post(f"{server.root}/tokenize", {"model": model, **chat})
    if status != 200:
        raise _answered("POST /tokenize", status, reply)
    try:
        return msgspec.json.decode(reply, type=_Tokens)
    except UNREADABLE:
        raise _CantDo("POST /tokenize was answered without tokens and max_model_len") from None


def _answered(what: str, status: int, reply: bytes) -> Exception:
    """A server that is busy or has broken down may do better later; any other status is what it does."""
    if status in (408, 429) or status >= 500:
        return refusal(status)
    reason = reason_of(reply)
    return _CantDo(f"{what} was answered with HTTP status {status}" + (f" ({reason})" if reason else ""))
