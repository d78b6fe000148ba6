"""The HTTP side of an auditor behind a server: requests, bounded replies, and which failure is which.

On the path of every audit, so it is lean: aiohttp's own client and msgspec. Nothing is retried here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec

from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError, FailureKind
from guardtrace_proxy.outgoing import TROUBLE, BadCaFile, open_session

MAX_CONNECTIONS = 100
KEEPALIVE_SECONDS = 4.0
"""Shorter than the five seconds after which uvicorn closes an idle connection, so that we don't run into
it."""
MAX_REPLY_BYTES = 4 * 1024 * 1024
MAX_REASON = 200
"""Characters of a server's own error message that are shown to the operator."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a reply raises: it isn't JSON, has another shape, or is nested deeper than the interpreter follows."""
LOOK_AT = {
    401: "api_key_env",
    402: "the account's credit",
    403: "api_key_env",
    404: "base_url, which usually ends in /v1, and at model, its name on that server",
}
"""What most often leads to a status."""
OF_ALL = frozenset({401, 402, 404})
"""Statuses that every other audit would meet, too; a 403 may be a server's way to refuse this one's text."""
KINDS = {
    429: FailureKind.OVERLOADED,
    502: FailureKind.GATEWAY,
    503: FailureKind.OVERLOADED,
    504: FailureKind.GATEWAY,
}
"""What a status means; every other one is ``REFUSED``."""


class BadRequest(AuditorFailure):
    """HTTP 400: the server takes what it is sent for wrong. Often it is too long; it may be the client's doing."""


class Misconfigured(AuditorFailure):
    """One of :data:`OF_ALL`: about key, credit, address or model, and so about every audit alike."""


class Token(msgspec.Struct):
    """A token with its log probability; ``token`` is ``token_id:N`` where that was asked for."""

    token: str
    logprob: float


class Position(Token):
    """What was written at one position, with the tokens that were asked about."""

    top_logprobs: list[Token] = []


class Logprobs(msgspec.Struct):
    """One entry a position."""

    content: list[Position] | None = None


class Message(msgspec.Struct):
    """What the guard wrote."""

    content: str | None = None


class Choice(msgspec.Struct):
    """The only choice of a completion."""

    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class PromptDetails(msgspec.Struct):
    """``multimodal_tokens`` counts by kind (``image``); vLLM's ``--enable-prompt-tokens-details``."""

    multimodal_tokens: dict[str, int] | None = None


class Usage(msgspec.Struct):
    """Tokens of the prompt as the server counted them."""

    prompt_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Completion(msgspec.Struct):
    """As much of a chat completion as is read."""

    choices: list[Choice]
    usage: Usage | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error | None = None
    message: str = ""


_read_completion = msgspec.json.Decoder(Completion).decode
_read_refusal = msgspec.json.Decoder(_Refusal).decode


class GuardServer:
    """One server with its connections. ``url`` ends in ``/v1``; ``timeout_ms`` bounds connecting alone, and the wait
    for one of its connections."""

    def __init__(self, url: str, *, ca_file: str | None, api_key: str | None, timeout_ms: int) -> None:
        self.url = url.rstrip("/")
        self.root = self.url.removesuffix("/v1")
        self.timeout = timeout_ms / 1000
        self._ca_file = ca_file
        self._api_key = api_key
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session; nothing is sent. Raises AuditorSettingsError where ``ca_file`` can't be used."""
        headers = {"content-type": "application/json"}
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        timeout = aiohttp.ClientTimeout(connect=self.timeout, sock_connect=self.timeout)  # the rest is the caller's
        try:
            self._http = open_session(
                headers,
                timeout,
                max_connections=MAX_CONNECTIONS,
                keepalive_seconds=KEEPALIVE_SECONDS,
                ca_file=self._ca_file,
            )
        except BadCaFile as error:
            raise AuditorSettingsError(f"auditor.ca_file: {error}") from error

    async def post(self, url: str, body: Any) -> tuple[int, bytes]:
        """HTTP status and body of the reply. Cancelling closes the connection, by which the server stops.

        Raises:
            AuditorFailure: there is no reply.
        """
        if self._http is None:
            raise AuditorFailure(FailureKind.CANCELLED, "the auditor isn't started")
        try:
            response = await self._http.post(url, data=msgspec.json.encode(body), allow_redirects=False)
            try:
                return response.status, await _read_bounded(response.content)
            finally:
                response.close()
        except TROUBLE as error:
            raise _no_reply(error) from error

    async def complete(self, body: Any) -> Completion:
        """A chat completion.

        Raises:
            AuditorFailure: there is none.
        """
        status, reply = await self.post(f"{self.url}/chat/completions", body)
        if status != 200:
            raise refusal(status)
        return completion_of(reply)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.close()


def completion_of(reply: bytes) -> Completion:
    """Read a completion; raises AuditorFailure."""
    try:
        return _read_completion(reply)
    except UNREADABLE as error:
        raise AuditorFailure(
            FailureKind.UNREADABLE, "the auditor's server didn't answer with a chat completion"
        ) from error


def refusal(status: int) -> AuditorFailure:
    """What an HTTP status other than 200 means."""
    kind = KINDS.get(status, FailureKind.REFUSED)
    look_at = LOOK_AT.get(status)
    told = f"the auditor's server answered with HTTP status {status}" + (f": look at {look_at}" if look_at else "")
    if status == 400:
        return BadRequest(kind, told)
    return Misconfigured(kind, told) if status in OF_ALL else AuditorFailure(kind, told)


def reason_of(reply: bytes) -> str:
    """A server's own words about an error, bounded; empty without any. They may quote what was sent."""
    try:
        found = _read_refusal(reply)
    except UNREADABLE:
        return ""
    message = found.error.message if found.error is not None else found.message
    return " ".join(message.split())[:MAX_REASON]


def _no_reply(error: Exception) -> AuditorFailure:
    if isinstance(error, asyncio.TimeoutError):
        return AuditorFailure(FailureKind.TIMEOUT, "no connection to the auditor's server in time")
    return AuditorFailure(FailureKind.UNREACHABLE, f"the auditor's server can't be reached ({type(error).__name__})")


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await content.readany():
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise AuditorFailure(FailureKind.UNREADABLE, f"the auditor's reply is over {MAX_REPLY_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)
