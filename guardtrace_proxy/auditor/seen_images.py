"""Whether an auditor's server looks at the images that it is sent: some routes and templates drop them silently."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import anyio
from PIL import Image, ImageDraw

from guardtrace_proxy.auditor.guard_server import Completion, GuardServer, Usage
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind

LEAST_IMAGE_TOKENS = 4
"""Of the trial's image: the fewest that a model makes of one, and more than a mark in the text takes."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a trial showed. ``seen`` is None where the server doesn't say how many tokens a prompt has; ``counted``:
    it says how many of them are an image's."""

    seen: bool | None
    counted: bool = False


class ImageCheck:
    """Checks each reply's usage; where that doesn't tell images apart, one trial with an image and without."""

    def __init__(self, server: GuardServer, model: str) -> None:
        self._server = server
        self._model = model
        self._lock = anyio.Lock()
        self._sight: Sight | None = None

    @property
    def warning(self) -> str | None:
        """What an operator must know where it can't be told what the server sees."""
        if self._sight is None or self._sight.seen is not None:
            return None
        return f"the auditor's server doesn't count prompt tokens: whether {self._model} sees images isn't checked"

    async def check(self, images: int, usage: Usage | None) -> None:
        """Raise AuditorFailure where a reply's usage counts fewer tokens than so many images have at least."""
        counted = _counted(usage)
        if counted is None:
            sight = await self._try()
            seen = sight.seen is not False and not sight.counted
        else:
            seen = counted >= images * LEAST_IMAGE_TOKENS
        if not seen:
            raise AuditorFailure(FailureKind.UNSEEN, "the auditor's server doesn't count the tokens of the images")

    async def _try(self) -> Sight:
        async with self._lock:
            if self._sight is None or self._sight.seen is False:
                self._sight = await self._sight_of_trial()
            return self._sight

    async def _sight_of_trial(self) -> Sight:
        image = {"type": "image_url", "image_url": {"url": trial_image()}}
        text = {"type": "text", "text": "What is 2 + 2?"}
        without = (await self._ask([text])).usage
        if without is None or without.prompt_tokens is None:
            return Sight(None)
        usage = (await self._ask([image, text])).usage
        if usage is None or usage.prompt_tokens is None:
            return Sight(None)
        more = usage.prompt_tokens - without.prompt_tokens
        return Sight(more >= LEAST_IMAGE_TOKENS, counted=_counted(usage) is not None)

    async def _ask(self, content: list[Any]) -> Completion:
        messages = [{"role": "user", "content": content}]
        return await self._server.complete(
            {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": 1, "stream": False}
        )


def _counted(usage: Usage | None) -> int | None:
    """Tokens that images took, where the server says so."""
    details = usage.prompt_tokens_details if usage is not None else None
    if details is None or details.multimodal_tokens is None:
        return None
    return details.multimodal_tokens.get("image", 0)


def trial_image() -> str:
    """A page with a square on it, as a data URL."""
    picture = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(picture).rectangle((28, 28, 84, 84), fill="black")
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"
