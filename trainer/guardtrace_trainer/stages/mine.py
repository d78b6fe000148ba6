"""Between stages 2 and 3: the DPO model judges its own training set again, and an oracle decides where it disagrees.

arXiv 2511.20994, the hard negatives of OGDPO. The model annotates through the proxy's own auditor, so what is mined is
what would be served. Asking the oracle twice, in both orders, is ours, and so is what happens to the rest:

- ``mined.jsonl``: the oracle sides with the jury. Chosen stays, rejected is the model's own output.
- ``dropped.jsonl``: the oracle sides with the model. The pair isn't trained on.
- ``undecided.jsonl``: the oracle contradicts itself between the orders, or can't be read.
- ``replay.jsonl``: pairs without a conflict whose chosen annotation is safe, as they were; see ``MineSettings.replay``.
- ``unjudged.jsonl``: the model's own reply can't be read, or the trace is longer than its context.
- ``oracle.jsonl``: every conflict with both annotations, both answers and what followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.calibration import CALIBRATION
from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.prompt import Trace as PartialTrace
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, Depth, DoesNotFit
from guardtrace_proxy.images import ImageLimits, RequestImage, decode_data_url
from guardtrace_trainer.asking import image_path, images_digest
from guardtrace_trainer.endpoints import Client, EndpointFailure, message
from guardtrace_trainer.rows import Annotation, Pair, rows_of
from guardtrace_trainer.stages import folders, oracle
from guardtrace_trainer.stages.conflicts import MODEL, ORDERS, Answer, Judged, Order, answer_id, write
from guardtrace_trainer.stages.paid import Ledger
from guardtrace_trainer.stages.settings import MineSettings, StageError
from guardtrace_trainer.stages.trainers import Log
from guardtrace_trainer.steps import Journal, Step

Question = tuple[Pair, Annotation, Order]
"""A pair, what the model says of it, and which of the two stands first."""


def run_mine(
    settings: MineSettings,
    *,
    base: str,
    data: Sequence[Path],
    out: Path,
    seed: int,
    log: Log,
    corpus: Path | None = None,
    again: bool = False,
) -> Path:
    """Mine ``data`` (all pairs that the DPO model ``base`` was trained on) for its mistakes; returns the path of
    ``mined.jsonl``. Its images are relative to ``corpus``; None: to the files' folder.

    ``seed`` picks what is replayed, and nothing else: the model writes greedily, the oracle is asked in both orders.

    Raises:
        RowError, StageError, StepError: with what to do. What is known already is kept for the next run.
    """
    images = corpus or _folder_of(data)
    pairs = [pair for _, _, pair in rows_of(data, Pair)]
    shown = [image_path(images, pair, pair.image, *data) for pair in pairs]
    folder = folders.folder_of(base)
    step = Step(
        out,
        "mine",
        inputs=[*data, *folders.inputs_of(folder)],
        settings={
            **settings.model_dump(mode="json", exclude={"oracle", "concurrency"}),
            "oracle": settings.oracle.settings(),
            "images": images_digest(images, shown),
            **({"seed": seed} if settings.replay else {}),
        },
        again=again,
        unheeded=[CALIBRATION],
    )
    if step.done:
        log(f"mine: {out} is done already")
        return out / "mined.jsonl"
    with step.journal("judged", Judged) as judged, Ledger(out) as ledger:
        asyncio.run(_judge_all(pairs, images, folder, settings, judged, log))
        conflicts = [(pair, model) for pair in pairs if (model := _against(pair, judged)) is not None]
        log(f"mine: {len(conflicts)} of {len(pairs)} pairs are conflicts")
        answers = asyncio.run(_ask_all(conflicts, images, settings, ledger, log))
        write(step, pairs, conflicts, judged.rows, answers, settings, seed)
    log(f"mine: {step.manifest.counts}")
    return out / "mined.jsonl"


def _folder_of(data: Sequence[Path]) -> Path:
    folder, *others = dict.fromkeys(path.parent for path in data)
    if others:
        raise StageError(f"the pairs lie in {folder} and {others[0]}: name the folder of their images, corpus")
    return folder


def _against(pair: Pair, judged: Journal[Judged]) -> Annotation | None:
    """The model's annotation of a pair's trace, where its level isn't the chosen one's."""
    annotation = judged.rows[pair.id].annotation
    return annotation if annotation is not None and annotation.level != pair.chosen.level else None


async def _judge_all(
    pairs: Sequence[Pair], images: Path, folder: Path, settings: MineSettings, judged: Journal[Judged], log: Log
) -> None:
    """Fill the journal of what the model says."""
    left = [pair for pair in pairs if pair.id not in judged]
    if not left:
        return
    auditor = make_auditor(
        "transformers",
        model=str(folder),
        annotate_max_tokens=settings.annotate_max_tokens,
        max_context=settings.max_context,
    )
    await auditor.start()

    async def judge(pair: Pair) -> None:
        judged.add(await _judged(auditor, pair, images))
        if len(judged.rows) % 500 == 0:
            log(f"mine: judged {len(judged.rows)} of {len(pairs)}")

    try:
        await _side_by_side(left, settings.concurrency, judge)
    finally:
        await auditor.aclose()


async def _judged(auditor: Auditor, pair: Pair, images: Path) -> Judged:
    query = Query([Turn("user", pair.question)], [_shown(images / pair.image)] if pair.image is not None else [])
    try:
        session = await auditor.open(query)
        try:
            verdict = await session.judge(PartialTrace(pair.thinking, pair.answer), Depth.ANNOTATE)
        finally:
            await session.aclose()
    except DoesNotFit as error:
        return Judged(id=pair.id, failure=f"doesn't fit: {error}")
    except AuditorFailure as failure:
        if failure.kind.value not in ("unreadable", "outgrown"):
            raise StageError(f"row {pair.id}: the model can't be run: {failure}") from failure
        return Judged(id=pair.id, failure=f"{failure.kind.value}: {failure}")
    if verdict.analysis is None:
        return Judged(id=pair.id, failure="unreadable: a judgment without an analysis")
    annotation = Annotation(judge=MODEL, level=verdict.level.value, analysis=verdict.analysis)
    return Judged(id=pair.id, annotation=annotation)


def _shown(path: Path) -> RequestImage:
    """An image as a request would bring it."""
    content = message("user", "", path)["content"]
    return decode_data_url(content[0]["image_url"]["url"], ImageLimits(), str(path))


async def _ask_all(
    conflicts: Sequence[tuple[Pair, Annotation]], images: Path, settings: MineSettings, ledger: Ledger, log: Log
) -> dict[str, Answer]:
    """What the oracle says of each conflict in both orders, by the answers' ids; nothing is paid for twice.

    Raises:
        StageError: the oracle can't be had, some questions got no answer, which may be otherwise the next time, or
            all were refused.
    """
    questions: list[Question] = [(pair, model, order) for pair, model in conflicts for order in ORDERS]
    answers: dict[str, Answer] = {}
    if not questions:
        return answers
    refused: list[tuple[Question, EndpointFailure]] = []
    lost: list[EndpointFailure] = []
    stopped: list[EndpointFailure] = []

    async def ask(question: Question) -> None:
        if stopped:
            return
        try:
            answer = await _answer(client, question, images, ledger)
        except EndpointFailure as failure:
            if failure.concerns_question:
                refused.append((question, failure))
            else:
                (lost if failure.temporary else stopped).append(failure)
            return
        answers[answer.id] = answer
        if len(answers) % 100 == 0:
            log(f"mine: {len(answers)} of {len(questions)} questions are answered")

    try:
        async with Client(settings.oracle) as client:
            await _side_by_side(questions, settings.oracle.concurrency, ask)
    except EndpointFailure as failure:
        raise StageError(str(failure)) from failure
    if stopped:
        raise StageError(f"{stopped[0]}. What was answered is kept: see to it and run it again to ask the others")
    if lost:
        raise StageError(
            f"{len(lost)} of {len(questions)} questions got no answer from the oracle, the first one: {lost[0]}. What "
            "was answered is kept: run it again to ask the others"
        )
    if refused and not answers:
        raise StageError(f"the oracle refuses every question, the first one with: {refused[0][1]}")
    for (pair, _, order), refusal in refused:
        name, problem = answer_id(pair, order), f"refused: {refusal}"
        answers[name] = Answer(id=name, trace_id=pair.id, order=order, raw="", sides_with=None, problem=problem)
    return answers


async def _answer(client: Client, question: Question, images: Path, ledger: Ledger) -> Answer:
    pair, model, order = question
    first, second = (pair.chosen, model) if order == "chosen first" else (model, pair.chosen)
    reply = await ledger.reply(client, oracle.question(pair, first, second, images))
    sides_with: Literal["chosen", "model"] | None = None
    problem = None
    try:
        sides_with = "chosen" if (oracle.parse_choice(reply.answer) == 1) is (order == "chosen first") else "model"
    except oracle.UnreadableChoice as error:
        problem = str(error)
    return Answer(
        id=answer_id(pair, order),
        trace_id=pair.id,
        order=order,
        raw=reply.answer,
        sides_with=sides_with,
        problem=problem,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )


async def _side_by_side(items: Sequence[Any], count: int, work: Callable[[Any], Awaitable[None]]) -> None:
    """Work on all items, ``count`` at a time; the first exception ends it."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(count, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
