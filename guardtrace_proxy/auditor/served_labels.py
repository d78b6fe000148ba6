"""Label reads over HTTP: the probabilities of the labels' tokens, which vLLM's server gives (``logprob_token_ids``)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guardtrace_proxy.auditor.guard_server import Completion, Position
from guardtrace_proxy.auditor.labels import JUDGMENT_OPENING, LabelTokens, Shares, read_in_steps
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind
from guardtrace_proxy.policy.levels import Level, Probabilities

AFTER_ZERO = JUDGMENT_OPENING + Level.SAFE.label
"""How the assistant's turn is begun for the second read."""
Ask = Callable[[dict[str, Any]], Awaitable[Completion]]
"""Completes a chat with these fields beside the model's name."""


@dataclass(frozen=True, slots=True)
class ServedLabels:
    """The labels in a server's tokens.

    ``opening`` is the text that begins the assistant's turn; its tokens are the same whichever label follows. ``end``
    is the token that the chat template puts behind the assistant's turn.
    """

    opening: str
    tokens: LabelTokens
    end: int

    def request(self, messages: Sequence[Any], begun: str | None = None) -> dict[str, Any]:
        """The fields of a read behind ``begun``, the opening by default.

        Two tokens are written where 0 and 0.5 begin alike: if the first is ``0``, the second read is in the same reply.
        """
        labels = self.tokens
        return {
            "messages": [*messages, {"role": "assistant", "content": begun or self.opening}],
            "add_generation_prompt": False,
            "continue_final_message": True,
            "temperature": 0,
            "max_tokens": 2 if labels.shared and begun is None else 1,
            "stream": False,
            "logprobs": True,
            "logprob_token_ids": [labels.zero, labels.half, labels.one, self.end],
            "return_tokens_as_token_ids": True,
        }

    async def read(self, ask: Ask, messages: Sequence[Any]) -> Probabilities:
        """Ask once, and a second time only where the reply leaves 0 and 0.5 undecided.

        Raises:
            AuditorFailure: from ``ask``, or the reply can't be read.
        """
        positions = positions_of(await ask(self.request(messages)))

        async def behind_zero() -> Shares:
            if len(positions) > 1 and positions[0].token == _name(self.tokens.zero):
                return self.shares(positions[1])
            return self.shares(positions_of(await ask(self.request(messages, begun=AFTER_ZERO)))[0])

        read = await read_in_steps(self.tokens, [self.end], self.shares(positions[0]), behind_zero)
        return read.probabilities(shared=self.tokens.shared)

    def shares(self, position: Position) -> Shares:
        """By token id, of the four tokens that were asked for."""
        found = {entry.token: math.exp(entry.logprob) for entry in position.top_logprobs}
        wanted = (self.tokens.zero, self.tokens.half, self.tokens.one, self.end)
        try:
            return {token: found[_name(token)] for token in wanted}
        except KeyError as error:
            raise AuditorFailure(
                FailureKind.UNREADABLE, "the auditor's server answered without the labels' probabilities"
            ) from error


def positions_of(completion: Completion) -> list[Position]:
    """The positions of a read, at least one; raises AuditorFailure."""
    logprobs = completion.choices[0].logprobs if completion.choices else None
    if logprobs is None or not logprobs.content:
        raise AuditorFailure(FailureKind.UNREADABLE, "the auditor's server answered without the labels' probabilities")
    return logprobs.content


def _name(token: int) -> str:
    return f"token_id:{token}"
