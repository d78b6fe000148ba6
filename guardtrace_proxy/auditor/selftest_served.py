"""The self-test's part that looks at a server: does it serve the model, count images and read all of a long prompt, how
fast does it read and write? Token counts are the server's own ``usage``."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, NamedTuple

import httpx

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, user_text
from guardtrace_proxy.auditor.protocol import AuditorSettingsError, Depth
from guardtrace_proxy.auditor.selftest_audits import (
    AUDIT_SECONDS,
    Report,
    SelfTestFailed,
    judge_all,
    long_text,
    sign,
    speed,
)
from guardtrace_proxy.images import RequestImage
from guardtrace_proxy.outgoing import trusting

LONG_BYTES = 4000
WRITTEN_TOKENS = 64


class Usage(NamedTuple):
    """Tokens. ``cached`` is the part of ``prompt`` that the server had read before."""

    prompt: int
    cached: int
    completion: int

    @classmethod
    def of(cls, usage: Any) -> Usage | None:
        """None where the server doesn't count."""
        try:
            details = usage.get("prompt_tokens_details") or {}
            return cls(
                int(usage["prompt_tokens"]), int(details.get("cached_tokens") or 0), int(usage["completion_tokens"])
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


class Served:
    """A model behind ``base_url``; an async context."""

    def __init__(self, base_url: str, model: str, api_key: str | None, ca_file: str | None = None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = base_url.rstrip("/")
        self._model = model
        self._http = httpx.AsyncClient(
            headers=headers, timeout=AUDIT_SECONDS, trust_env=False, verify=trusting(ca_file)
        )

    async def __aenter__(self) -> Served:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def facts(self) -> dict[str, str | int]:
        """What the server says of the model.

        Raises:
            SelfTestFailed: it can't be asked, or serves others.
        """
        answer = await self._ask("GET", "/models")
        listed = answer.get("data")
        if not isinstance(listed, list):
            raise SelfTestFailed(
                f"{self._url}/models didn't answer with a list of models: expected an object with data"
            )
        served = {str(entry.get("id")): entry for entry in listed if isinstance(entry, dict)}
        if self._model not in served:
            names = ", ".join(served) or "nothing"
            raise SelfTestFailed(f"the server serves {names}, expected {self._model}: give the name that it serves")
        length = served[self._model].get("max_model_len")
        return {"server": self._url, **({"context": length} if isinstance(length, int) else {})}

    async def check_images(self) -> int | None:
        """How many tokens an image takes; None where the server doesn't say.

        Raises:
            SelfTestFailed: it takes none, or is read as text.
        """
        found = [
            await self._complete("What is shown?", image, 1)
            for image in (None, sign(""), sign("Break into the\nhouse at night", "yellow"))
        ]
        counts = [usage.prompt for usage in found if usage is not None]
        if len(counts) < len(found):
            return None
        plain, small, large = counts
        if small <= plain:
            raise SelfTestFailed(
                f"a prompt has {plain} tokens without an image and {small} with one, so images aren't read: expected "
                "more; serve a vision-language model, with images allowed"
            )
        if small != large:
            raise SelfTestFailed(
                f"two images of one size take {small - plain} and {large - plain} tokens, so their data is "
                "read as text: expected as many; serve a vision-language model with its own chat template"
            )
        return small - plain

    async def token_rates(self, seconds: float) -> tuple[float | None, float | None]:
        """Tokens a second that are read, and written, by one request at a time; None where the server doesn't count."""
        read = written = 0
        reading = writing = 0.0
        began = time.perf_counter()
        while not reading or time.perf_counter() - began < seconds:
            text = f"{time.time_ns()}: {long_text(LONG_BYTES)}"  # new to the server's cache, then not
            fresh, fresh_seconds = await self._timed(text, 1)
            again, short_seconds = await self._timed(text, 1)
            longer, long_seconds = await self._timed(text, WRITTEN_TOKENS)
            if fresh is None or again is None or longer is None:
                return None, None
            read, reading = read + fresh.prompt - fresh.cached, reading + fresh_seconds
            written += longer.completion - again.completion
            writing += max(long_seconds - short_seconds, 1e-6)
        return read / reading, written / writing

    async def _timed(self, text: str, tokens: int) -> tuple[Usage | None, float]:
        began = time.perf_counter()
        usage = await self._complete(text, None, tokens)
        return usage, time.perf_counter() - began

    async def _complete(self, text: str, image: RequestImage | None, tokens: int) -> Usage | None:
        parts: list[dict[str, Any]] = []
        if image is not None:
            parts.append({"type": "image_url", "image_url": {"url": image.data_url}})
        parts.append({"type": "text", "text": user_text(text, "", "")})
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": parts}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": False}
        return Usage.of((await self._ask("POST", "/chat/completions", body)).get("usage"))

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        url = self._url + path
        try:
            reply = await self._http.request(method, url, json=body)
            answer = reply.json() if reply.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SelfTestFailed(
                f"{url} can't be reached ({type(error).__name__}): is it up, and the URL right?"
            ) from error
        except ValueError as error:
            raise SelfTestFailed(f"{url} didn't answer with JSON: expected an OpenAI-compatible server") from error
        if reply.status_code != httpx.codes.OK:
            raise SelfTestFailed(
                f"{url} answered with HTTP status {reply.status_code}, expected 200: look at the server's log"
            )
        if not isinstance(answer, dict):
            raise SelfTestFailed(f"{url} didn't answer with a JSON object: expected an OpenAI-compatible server")
        return answer


async def report_on_served(
    model: str, base_url: str, api_key: str | None, seconds: float, ca_file: str | None, max_context: int | None
) -> Report:
    """As :func:`guardtrace_proxy.auditor.selftest.self_test`."""
    report = Report(model)
    async with Served(base_url, model, api_key, ca_file) as served:
        report.facts |= await served.facts()
        counted = await served.check_images()
        if counted is None:
            report.notes.append("the server reports no usage, so that an image counts couldn't be checked")
        else:
            report.facts["image tokens"] = counted
        rates = await served.token_rates(seconds)
        report.prefill_tokens_per_second, report.decode_tokens_per_second = rates
    for depth in (Depth.LABEL, Depth.ANNOTATE):
        try:
            made = make_auditor(
                "openai",
                model=model,
                base_url=base_url,
                ca_file=ca_file,
                api_key=api_key,
                depth=depth.value,
                max_context=max_context,
            )
            await made.start()
        except AuditorSettingsError as error:
            if depth is Depth.ANNOTATE:
                raise
            report.notes.append(f"depth label wasn't tried: {error}")
            continue
        try:
            report.verdicts += await judge_all(made, depth)
            report.speeds.append(await speed(made, depth, seconds))
            report.notes += [warning for warning in made.warnings if warning not in report.notes]
            assert isinstance(made, OpenAIAuditor)
            trial = made.text_check.trial
            if trial is not None and trial.read is not None:
                report.facts["longest read"] = trial.read
        finally:
            await made.aclose()
    return report
