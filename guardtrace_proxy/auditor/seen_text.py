"""Whether an auditor's server reads all of a long prompt: some drop what is over their context, and answer."""

from __future__ import annotations

import asyncio
import random
import string
import time
from dataclasses import dataclass
from secrets import token_hex

import anyio

from guardtrace_proxy.auditor.guard_server import GuardServer, Misconfigured
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind

OPENING = "Read these letters."
"""Of the trial."""
TEMPLATE_TOKENS = 64
"""Kept free for what the server's chat template puts around a trial."""
JOINED_SHARE = 0.02
"""So many of the letters, at most, might a tokenizer join."""
TRIAL_SECONDS = 300.0
"""A trial's own bound: a 3B on a CPU may read for minutes."""
LEAST_SETTING = 512
"""The least that ``auditor.max_context`` may be."""
AGAIN_SECONDS = 60.0
"""A server that drops text is tried again, but not more often than this."""


class DropsText(Misconfigured):
    """The server answers without having read all that it was sent."""


@dataclass(frozen=True, slots=True)
class Trial:
    """``read``: the tokens that the server counted, of a prompt of at least ``sent``; None where it doesn't count.
    ``is_refused``: it refuses a prompt of that length, so it drops nothing."""

    sent: int
    read: int | None = None
    is_refused: bool = False

    @property
    def drops_text(self) -> bool:
        return self.read is not None and self.read < self.sent * (1 - JOINED_SHARE)


class TextCheck:
    """One trial with a prompt as long as audits may send. It outlives the audits that wait for it, since a slow server
    may need longer than an audit may take."""

    def __init__(self, server: GuardServer, model: str) -> None:
        self._server = server
        self._model = model
        self._running: asyncio.Task[AuditorFailure | None] | None = None
        self._failed_at = 0.0
        self.trial: Trial | None = None
        """Once it has passed."""

    async def check(self, prompt_tokens: int, max_context: int) -> None:
        """Raise AuditorFailure where there is no trial, or it showed that text of such prompts is dropped."""
        if self.trial is not None:
            return
        if self._running is None or self._is_due():
            self._running = asyncio.create_task(self._try(prompt_tokens, max_context))
        failure = await asyncio.shield(self._running)
        if failure is not None:  # one anew for each audit: what is raised keeps the frames that it went through
            raise type(failure)(failure.kind, str(failure))

    @property
    def warning(self) -> str | None:
        """What an operator must know of a trial that passed."""
        if self.trial is None:
            return None
        if self.trial.is_refused:
            return (
                f"the auditor's server refuses a prompt of some {self.trial.sent} tokens, which auditor.max_context "
                "allows: set it to the server's context, or audits of long replies may fail"
            )
        if self.trial.read is None:
            return (
                f"the auditor's server doesn't count prompt tokens: whether {self._model} is shown all of a long "
                "prompt isn't checked; auditor.max_context must not be more than the server's context"
            )
        return None

    def close(self) -> None:
        """End a trial that runs."""
        if self._running is not None:
            self._running.cancel()

    def _is_due(self) -> bool:
        """A trial has failed, and another may show something else."""
        assert self._running is not None
        if not self._running.done():
            return False
        waits = isinstance(self._running.result(), DropsText)
        return not waits or time.monotonic() - self._failed_at >= AGAIN_SECONDS

    async def _try(self, prompt_tokens: int, max_context: int) -> AuditorFailure | None:
        sent = max(prompt_tokens - TEMPLATE_TOKENS, prompt_tokens // 2)
        try:
            with anyio.fail_after(TRIAL_SECONDS):
                trial = await self._sent(sent)
        except AuditorFailure as failure:
            return failure
        except TimeoutError:
            told = (
                f"the auditor's server didn't read {sent} tokens within {TRIAL_SECONDS:g} s: lower auditor.max_context"
            )
            return AuditorFailure(FailureKind.TIMEOUT, told)
        except asyncio.CancelledError:
            return AuditorFailure(FailureKind.CANCELLED, "the auditor was closed")
        if trial.drops_text:
            self._failed_at = time.monotonic()
            return _dropped(trial, max_context)
        self.trial = trial  # here, since nobody may wait for it any more
        return None

    async def _sent(self, letters: int) -> Trial:
        try:
            return Trial(letters, read=await self._ask(trial_text(letters)))
        except AuditorFailure as failure:
            if failure.kind is not FailureKind.REFUSED or isinstance(failure, Misconfigured):
                raise
        await self._ask("What is 2 + 2?")  # raises where its length wasn't why
        return Trial(letters, is_refused=True)

    async def _ask(self, text: str) -> int | None:
        messages = [{"role": "user", "content": text}]
        completion = await self._server.complete(
            {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": 1, "stream": False}
        )
        counted = None if completion.usage is None else completion.usage.prompt_tokens
        return counted or None  # who counts none at all doesn't count


def trial_text(letters: int) -> str:
    """At least a token a letter. It begins anew each time, since a server may count only what it hadn't read before."""
    mixed = random.Random(0).choices(string.ascii_letters, k=letters)
    return f"{OPENING} {token_hex(4)}\n{' '.join(mixed)}"


def _dropped(trial: Trial, max_context: int) -> DropsText:
    read = trial.read or 0
    lower = f"set auditor.max_context to {read} or less, or " if read >= LEAST_SETTING else ""
    return DropsText(
        FailureKind.REFUSED,
        f"the auditor's server read {read} of at least {trial.sent} tokens and answered as if it had read all, so that "
        "parts of what is judged would be missing; expected all of a prompt that auditor.max_context "
        f"({max_context}) allows: {lower}raise the server's context (Ollama: OLLAMA_CONTEXT_LENGTH)",
    )
