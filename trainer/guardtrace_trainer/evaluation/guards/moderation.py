"""OpenAI's moderation endpoint: text and image in, a flag and scores by category out.

Request and reply: https://platform.openai.com/docs/api-reference/moderations (``omni-moderation-latest``). It knows no
roles, so query, thinking and answer go in as one text; several inputs of one request get one result.
"""

from __future__ import annotations

import msgspec

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import GuardVerdict, UnreadableVerdict, image_part, whole_reply


class _Result(msgspec.Struct):
    flagged: bool
    category_scores: dict[str, float | None]


class _Moderation(msgspec.Struct):
    results: list[_Result]


class ModerationGuard:
    """Unsafe where it flags anything."""

    sees_images = True
    levels = False

    def __init__(self, client: Client) -> None:
        self._client = client

    async def judge(self, item: Item) -> GuardVerdict:
        parts = [] if item.image is None else [image_part(item.image)]
        text = f"{item.question}\n\n{whole_reply(item)}"
        request = {"model": self._client.endpoint.model, "input": [*parts, {"type": "text", "text": text}]}
        return read_moderation(await self._client.post("moderations", {**self._client.endpoint.request, **request}))


def read_moderation(body: bytes) -> GuardVerdict:
    """Read a reply.

    Raises:
        UnreadableVerdict: it is no moderation.
    """
    try:
        results = msgspec.json.decode(body, type=_Moderation).results
    except msgspec.DecodeError as error:
        raise UnreadableVerdict(f"the reply is no moderation ({error})") from error
    if not results:
        raise UnreadableVerdict("the moderation has no result")
    scores: dict[str, float] = {}
    for result in results:
        for name, score in result.category_scores.items():
            scores[name] = max(score or 0.0, scores.get(name, 0.0))
    return GuardVerdict(any(result.flagged for result in results), scores=scores)
