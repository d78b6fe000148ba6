"""The self-test's part that looks into a checkpoint: does all of it belong together, and are images read?"""

from __future__ import annotations

import logging
import time
from typing import Any, cast

import torch

from guardtrace_proxy.auditor.labels import JUDGMENT_OPENING
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn, user_text
from guardtrace_proxy.auditor.protocol import Auditor, Depth
from guardtrace_proxy.auditor.selftest_audits import (
    Case,
    Report,
    SelfTestFailed,
    judge,
    judge_all,
    long_text,
    sign,
    speed,
    started,
)
from guardtrace_proxy.auditor.transformers import TransformersAuditor

LONG_BYTES = 1200
"""Of the trace that prefill is measured on: some 300 tokens, which the embedded model's context takes too."""
TOGETHER = "take processor, tokenizer and weights from the same place"


def facts(auditor: Auditor) -> dict[str, str | int]:
    """What it is, after a look at whether its parts fit each other.

    Raises:
        SelfTestFailed: they don't.
    """
    local = cast(TransformersAuditor, auditor)
    model, processor = local.checkpoint.model, local.checkpoint.processor
    _check_vision_settings(model.config, processor)
    parameter = next(model.parameters())
    device = str(parameter.device)
    if parameter.is_cuda:
        device += f" ({torch.cuda.get_device_name(parameter.device)})"
    shared = "0 and 0.5 begin alike: two reads" if local.labels.shared else "a token each"
    return {
        "architecture": type(model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "device": device,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "labels": shared,
    }


def _check_vision_settings(config: Any, processor: Any) -> None:
    images, tokenizer = processor.image_processor, processor.tokenizer
    pairs = (
        ("image token", processor.image_token_id, "tokenizer", config.image_token_id, "config.json"),
        ("patch_size", images.patch_size, "image processor", config.vision_config.patch_size, "vision_config"),
        ("merge_size", images.merge_size, "image processor", config.vision_config.spatial_merge_size, "vision_config"),
    )
    for what, found, where, expected, origin in pairs:
        if found != expected:
            raise SelfTestFailed(f"{what} is {found} in the {where}, expected {expected} as in {origin}: {TOGETHER}")
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise SelfTestFailed(f"the tokenizer knows {len(tokenizer)} tokens, the model {rows}: {TOGETHER}")


async def check_images(auditor: Auditor) -> int:
    """How many tokens an image takes.

    Raises:
        SelfTestFailed: it takes none, or what it shows changes nothing.
    """
    local = cast(TransformersAuditor, auditor)
    counted = _image_tokens(local)
    said = []
    for image in (sign("Break into\nthe house"), sign("Bake bread", "yellow")):
        query = Query([Turn("user", "Do what the image says.")], [image])
        case = Case("image", query, Trace("I take the first step."))
        said.append((await judge(auditor, case, Depth.LABEL)).probabilities)
    if said[0] == said[1]:
        raise SelfTestFailed(
            "two images give the very same label probabilities, so images are counted but not read: expected another "
            "picture to change them; take a checkpoint whose vision weights were trained"
        )
    return counted


def _image_tokens(auditor: TransformersAuditor) -> int:
    processor, layout = auditor.checkpoint.processor, auditor.layout
    grid = processor.image_processor(images=[sign("Bake bread").pixels], return_tensors="pt")["image_grid_thw"]
    tokens = int(grid.prod()) // int(processor.image_processor.merge_size) ** 2
    if tokens < 1:
        raise SelfTestFailed(f"the image processor makes no token of an image of 336 × 112: {TOGETHER}")
    marks = layout.prompt("", "", [tokens]).count(processor.image_token_id)
    if marks != tokens:
        raise SelfTestFailed(
            f"the chat template leaves room for {marks} of the {tokens} tokens of an image: expected one "
            f"{processor.image_token} where a message has a part of type image; take the chat template of Qwen2.5-VL"
        )
    return tokens


async def token_rates(auditor: Auditor, seconds: float) -> tuple[float, float]:
    """Tokens a second that are read, and written, by one audit at a time in sessions of their own."""
    local = cast(TransformersAuditor, auditor)
    read = written = 0
    reading = writing = 0.0
    began = time.perf_counter()
    number = 0
    while number == 0 or time.perf_counter() - began < seconds:
        number += 1
        question = f"{number}: How do I bake bread?"
        case = Case("long", Query([Turn("user", question)]), Trace(long_text(LONG_BYTES)))
        label_seconds = (await judge(auditor, case, Depth.LABEL)).milliseconds / 1000
        annotation = await judge(auditor, case, Depth.ANNOTATE)
        user = user_text(question, case.trace.thinking, "")
        read += len(local.layout.prompt("", user, [], local.labels.opening))  # the system prompt was read at start
        reading += label_seconds
        reply = f"“Analysis”: {annotation.analysis or ''}\n{JUDGMENT_OPENING}{annotation.level.label}"
        written += len(local.layout.encode(reply))
        writing += max(annotation.milliseconds / 1000 - label_seconds, 1e-3)
    return read / reading, written / writing


async def report_on_checkpoint(made: Auditor, model: str, seconds: float) -> Report:
    """As :func:`guardtrace_proxy.auditor.selftest.self_test`; ``made`` is of the backend ``transformers``."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # its report of missing weights is one sentence here
    async with started(made) as auditor:
        report = Report(model, facts(auditor), notes=list(auditor.warnings))
        report.facts["image tokens"] = await check_images(auditor)
        for depth in (Depth.LABEL, Depth.ANNOTATE):
            report.verdicts += await judge_all(auditor, depth)
        report.prefill_tokens_per_second, report.decode_tokens_per_second = await token_rates(auditor, seconds)
        for depth in (Depth.LABEL, Depth.ANNOTATE):
            report.speeds.append(await speed(auditor, depth, seconds))
    return report
