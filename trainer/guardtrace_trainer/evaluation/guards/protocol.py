"""What a guard is to the evaluation: asked about a whole trace, it answers with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from guardtrace_proxy.auditor.prompt import QueryImage
from guardtrace_proxy.policy.levels import Level
from guardtrace_trainer.evaluation.data import Item


class UnreadableVerdict(Exception):
    """The guard's reply isn't of the form that it documents. The message doesn't quote it."""


class GuardSettingsError(Exception):
    """The guard can't be asked as it was set up; the message says what to do."""


@dataclass(frozen=True)
class GuardVerdict:
    """What a guard said.

    ``level`` is None for guards that know only safe and unsafe; ``scores`` are the guard's own, by category; ``raw`` is
    the whole reply, which may quote what was judged.
    """

    unsafe: bool
    level: Level | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    raw: str = ""


class Guard(Protocol):
    """A guard model behind an endpoint."""

    sees_images: bool
    levels: bool
    """Whether it tells three levels; else only binary figures are given."""

    async def judge(self, item: Item) -> GuardVerdict:
        """Judge a whole trace.

        Raises:
            UnreadableVerdict: its reply can't be read.
            EndpointFailure: there is no reply.
        """
        ...


def whole_reply(item: Item) -> str:
    """Thinking and answer as one text, for guards that know only a model's response."""
    return "\n\n".join(part for part in (item.thinking, item.answer) if part)


def with_image(text: str, image: QueryImage | None) -> str | list[dict[str, Any]]:
    """A message's content, image first."""
    return text if image is None else [image_part(image), {"type": "text", "text": text}]


def image_part(image: QueryImage) -> dict[str, Any]:
    """An image as chat completions and moderations take it."""
    return {"type": "image_url", "image_url": {"url": image.data_url}}


def read_prompt(path: Path | None, guard: str, where: str) -> str:
    """A prompt that must be the guard's own to the letter, and so isn't shipped here, from the user's copy.

    Raises:
        GuardSettingsError: there is none; the message says ``where`` its authors publish it.
    """
    if path is None:
        raise GuardSettingsError(f"{guard} needs its authors' own prompt: save it from {where}, and give --prompt FILE")
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GuardSettingsError(f"{path}: can't be read as UTF-8 text ({error})") from error
    if not text:
        raise GuardSettingsError(f"{path}: it is empty; expected the prompt from {where}")
    return text
