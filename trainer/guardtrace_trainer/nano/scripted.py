"""A thinking model, three judges, an oracle and experts for the small recipe, all scripted and served over HTTP.

Whoever asks them uses the same clients as for real models. What they know is the corpus's own truth: every trace is
drawn again from its number. Each judge errs in a way of its own, on the traces where real judges err, too:

- ``wary`` takes steps towards something harmless for harm;
- ``polite`` lets a refusing answer excuse what the thinking gave away, or takes the request for harmless;
- ``coarse`` confuses hints with steps;

and all of them err at random now and then. Harm is both alleged falsely and overlooked: where it was only alleged, DPO
learned to call everything harmless. So votes split 3:0, 2:1 and 1:1:1, and what is rejected is what a judge would
really have said.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from guardtrace_proxy.auditor.prompt import QUERY, RESPONSE, THINKING
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_trainer.nano.authored import ACT, HINT, SAFE
from guardtrace_trainer.nano.corpus import Excerpt, Sample, excerpt_of
from guardtrace_trainer.rows import LEVELS

JUDGES = ("wary", "polite", "coarse")
CAREFUL = "careful"
"""A fourth judge, without a weakness of its own: it looks for onsets."""
SYSTEMATIC = {"wary": 0.28, "polite": 0.4, "coarse": 0.2, CAREFUL: 0.0}
"""How often a judge errs where it is prone to."""
ANYWHERE = 0.03
ORACLE_ERRS, ORACLE_WAVERS = 0.04, 0.04
MAX_BODY_BYTES = 4 << 20


class Unknown(Exception):
    """A question about a trace that isn't the corpus's."""


class Truth:
    """All traces of a corpus by what a model is shown of them."""

    def __init__(self, known: Iterable[tuple[str, bytes | None, Sample]]) -> None:
        self._by_request = {_key(question, image): trace for question, image, trace in known}

    def trace(self, question: str, image: bytes | None) -> Sample:
        """The trace that answers a request.

        Raises:
            Unknown: the request isn't the corpus's.
        """
        found = self._by_request.get(_key(question, image))
        if found is None:
            raise Unknown("the scripted models know only the requests of their own corpus")
        return found

    def excerpt(self, text: str, image: bytes | None) -> Excerpt:
        """What a prompt in the auditor's layout shows, as the corpus would label it.

        Raises:
            Unknown: it is no trace of the corpus, nor the beginning of one.
        """
        question, thinking, answer = read_layout(text)
        sample = self.trace(question, image)
        excerpt = excerpt_of(sample, thinking, answer)
        if excerpt is None:
            raise Unknown("the scripted models never wrote such a trace")
        return excerpt


def read_layout(text: str) -> tuple[str, str, str]:
    """Query, thinking and response of a prompt in the published layout.

    Raises:
        Unknown: it has another layout.
    """
    head, found, rest = text.partition(QUERY)
    question, found2, rest = rest.partition(f"\n{THINKING}")
    thinking, found3, answer = rest.rpartition(f"\n{RESPONSE}")
    if head or not (found and found2 and found3):
        raise Unknown("the scripted judges are asked in the auditor's own layout")
    return question, thinking, answer


def opinion(judge: str, excerpt: Excerpt) -> Excerpt:
    """What a judge takes a trace for; the same one whenever it is asked."""
    rng = random.Random(f"{judge} {_digest(excerpt)}")
    systematic = rng.random() < SYSTEMATIC[judge]
    harm, strength = excerpt.sample.harm, excerpt.strength
    if rng.random() < ANYWHERE:
        return _seen(excerpt, harm, rng.choice([other for other in (SAFE, HINT, ACT) if other != strength]))
    if not systematic:
        return excerpt
    if judge == "wary" and not harm and strength != SAFE:
        return _seen(excerpt, True, strength)
    if judge == "polite" and harm and strength != SAFE and excerpt.sample.answer_strength == SAFE:
        is_excused = excerpt.answer and rng.random() < 0.25
        return _seen(excerpt, harm, SAFE) if is_excused else _seen(excerpt, False, strength)
    if judge == "coarse" and harm and strength != SAFE:
        return _seen(excerpt, harm, ACT if strength == HINT else HINT)
    return excerpt


def _seen(excerpt: Excerpt, harm: bool, strength: int) -> Excerpt:
    return replace(excerpt, sample=replace(excerpt.sample, harm=harm), strength=strength)


def _digest(excerpt: Excerpt) -> str:
    return hashlib.sha256(excerpt.user_text.encode()).hexdigest()


def _key(question: str, image: bytes | None) -> str:
    """Of a question as the thinking model is asked it, or as the jury is shown it, its control tokens broken up."""
    digest = hashlib.sha256(defuse_control_tokens(question).encode())
    digest.update(b"\0" if image is None else b"\1" + image)
    return digest.hexdigest()


class Parties:
    """The scripted models as one HTTP application: ``/thinker/v1``, ``/<judge>/v1`` and ``/oracle/v1``."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.app = web.Application(client_max_size=MAX_BODY_BYTES)
        self.app.router.add_post("/{party}/v1/chat/completions", self._reply)

    async def _reply(self, request: web.Request) -> web.Response:
        party = request.match_info["party"]
        body = await request.json()
        texts, images = read_messages(body["messages"])
        image = images[0] if images else None
        try:
            if party == "thinker":
                return _completion(body["model"], *self._think(texts[-1], image))
            if party == "oracle":
                return _completion(body["model"], "", self._decide(texts[-1], image))
            if party in SYSTEMATIC:
                excerpt = self.truth.excerpt(texts[-1], image)
                return _completion(body["model"], "", opinion(party, excerpt).reply)
        except Unknown as error:
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=400)
        return web.json_response({"error": {"message": f"no such party: {party}"}}, status=404)

    def _think(self, question: str, image: bytes | None) -> tuple[str, str]:
        sample = self.truth.trace(question, image)
        return " ".join(text for text, _ in sample.sentences), sample.answer

    def _decide(self, text: str, image: bytes | None) -> str:
        work, levels = read_reviews(text)
        return json.dumps({"choice": choice(self.truth.excerpt(work, image), levels)})


def read_reviews(text: str) -> tuple[str, tuple[float, float]]:
    """The work and both reviews' levels, from an oracle's question (see :mod:`guardtrace_trainer.stages.oracle`).

    Raises:
        Unknown: it is asked otherwise.
    """
    work, found, rest = text.rpartition("\n\nReviewer 1: ")
    first, found2, rest = rest.partition("\nReviewer 2: ")
    second = rest.partition("\n\n")[0]
    if not (found and found2):
        raise Unknown("the scripted oracle is shown two reviews in JSON")
    one, other = (float(json.loads(review)["judgment"]) for review in (first, second))
    return work, (one, other)


def choice(excerpt: Excerpt, levels: tuple[float, float]) -> int:
    """Which review an oracle prefers, 1 or 2: mostly the right one or the nearer, at times the wrong one, at times the
    first one in either order."""
    rng = random.Random(f"oracle {_digest(excerpt)}")
    errs, wavers = rng.random() < ORACLE_ERRS, rng.random() < ORACLE_WAVERS
    if wavers:
        return 1
    right = LEVELS[excerpt.level]
    nearer = 1 if abs(levels[0] - right) <= abs(levels[1] - right) else 2
    return 3 - nearer if errs else nearer


def read_messages(messages: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[bytes]]:
    """The texts of a conversation and its images' bytes, in order."""
    texts, images = [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
            continue
        texts.append("".join(part["text"] for part in content if part["type"] == "text"))
        for part in content:
            if part["type"] == "image_url":
                images.append(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    return texts, images


def _completion(model: str, thinking: str, answer: str) -> web.Response:
    message = {"role": "assistant", "content": answer} | ({"reasoning_content": thinking} if thinking else {})
    usage = {"prompt_tokens": 0, "completion_tokens": (len(thinking) + len(answer)) // 4}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return web.json_response({"id": "scripted", "model": model, "choices": [choice], "usage": usage})
