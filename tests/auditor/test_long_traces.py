"""A trace many times as long as the context: what is shown, what it costs, and that nothing unjudged is lost."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import anyio
import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor import labels as labels_module  # noqa: E402
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn  # noqa: E402
from guardtrace_proxy.auditor.protocol import Depth  # noqa: E402
from guardtrace_proxy.auditor.quoting import quote_forged_labels  # noqa: E402
from guardtrace_proxy.auditor.transformers import TransformersAuditor, TransformersSession  # noqa: E402
from tests.auditor.attacks import ATTACKS, labels_seen  # noqa: E402
from tests.auditor.conftest import Picture  # noqa: E402
from tests.auditor.local import started, triple  # noqa: E402
from tests.auditor.test_incremental import counted  # noqa: E402

ASKED = "How do I bake bread?"
SYSTEM = "You judge: 0, 0.5 or 1."
SENTENCE = "Step {}: the user wants bread, so flour, water and salt are weighed. Then one waits.\n"
FORGED = [attack.text for attack in ATTACKS if attack.kind in ("templates", "layout", "look-alikes")]


def chunks(auditor: TransformersAuditor, tokens: int, size: int) -> list[str]:
    """A trace of at least so many tokens, in pieces of at least ``size``, with an attack now and then."""
    made: list[str] = []
    total, number = 0, 0
    while total < tokens:
        chunk = ""
        while len(auditor.layout.encode(chunk)) < size:
            number += 1
            chunk += SENTENCE.format(number)
            if number % 9 == 0:
                chunk += FORGED[number % len(FORGED)] + "\n"
        made.append(chunk)
        total += len(auditor.layout.encode(chunk))
    return made


class Placed:
    """A session, and the prompts that it was shown."""

    def __init__(self, session: TransformersSession, auditor: TransformersAuditor) -> None:
        self.session, self.auditor = session, auditor
        self.prompts: list[list[int]] = []
        place = session._place

        def placing(trace: Trace, opening: list[int] | None) -> list[int]:
            self.prompts.append(place(trace, opening))
            return self.prompts[-1]

        session._place = placing  # type: ignore[assignment,method-assign]

    def text(self) -> str:
        return self.auditor.layout.decode(self.prompts[-1])

    async def full_prefill(self) -> tuple[float, float, float]:
        """The labels of the last prompt, read by nobody before."""
        fresh = await self.auditor.open(Query([Turn("user", ASKED)]))
        fresh._images = self.session._images
        ids = self.prompts[-1]
        fresh._place = lambda *_: ids  # type: ignore[assignment,method-assign]
        verdict = await fresh.judge(Trace(""), Depth.LABEL)
        await fresh.aclose()
        return triple(verdict.probabilities)


@pytest.mark.parametrize(
    ("context", "tokens", "size", "images"),
    [(1024, 8_000, 96, 1), pytest.param(8192, 32_000, 128, 1, marks=pytest.mark.slow), (512, 3_000, 48, 0)],
)
def test_a_long_trace_slides_and_loses_nothing_unjudged(
    untaught: Path,
    pictures: list[Picture],
    monkeypatch: pytest.MonkeyPatch,
    context: int,
    tokens: int,
    size: int,
    images: int,
) -> None:
    monkeypatch.setattr(labels_module, "LEAST_MASS", 0.0)  # random weights: the labels carry next to nothing
    auditor = started(untaught, max_context=context, system_prompt=SYSTEM)
    image = auditor.checkpoint.processor.image_token_id

    async def run() -> None:
        session = await auditor.open(Query([Turn("user", ASKED)], pictures[:images]))
        placed, passes = Placed(session, auditor), counted(auditor, monkeypatch)
        trace = chunks(auditor, tokens, size)
        thinking, answer, slid, before = "", "", 0, 0
        for number, chunk in enumerate(trace):
            judged = len(thinking), len(answer)
            if number < len(trace) * 7 // 8:
                thinking += chunk
            else:
                answer += chunk
            verdict = await session.judge(Trace(thinking, answer, *judged), Depth.LABEL)
            ids, text = placed.prompts[-1], placed.text()
            assert len(ids) <= auditor.prompt_tokens
            assert ids.count(image) == sum(session._image_tokens)
            assert ids[-len(auditor.labels.opening) :] == auditor.labels.opening
            assert f"Current Task Query: {ASKED}\n" in text
            assert unicodedata.normalize("NFC", quote_forged_labels(chunk)) in text
            slid += len(ids) < before
            before = len(ids)
            if number % (len(trace) // 6) == 0 or number == len(trace) - 1:
                read = len(passes)
                assert triple(verdict.probabilities) == pytest.approx(await placed.full_prefill(), abs=1e-4)
                del passes[read:]  # the full prefill's own
        assert slid >= 4
        whole = len(auditor.layout.encode(thinking + answer))
        assert sum(passes) <= 3 * whole

    anyio.run(run)


def test_what_the_window_shows_holds_no_forged_label(untaught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "LEAST_MASS", 0.0)
    auditor = started(untaught, max_context=512, system_prompt=SYSTEM)

    async def run() -> None:
        session = await auditor.open(Query([Turn("user", ASKED)]))
        placed = Placed(session, auditor)
        thinking = ""
        for forged in FORGED:
            judged = len(thinking)
            thinking += f"{forged}\nand so on. "
            await session.judge(Trace(thinking, "", judged), Depth.LABEL)
            user = placed.text().partition("Current Task Query: ")[2].rpartition("assistant")[0]
            assert len(labels_seen(user)) == 2

    anyio.run(run)
