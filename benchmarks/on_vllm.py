"""The same auditor on vLLM's engine, with its prefix cache and without. Needs vLLM's environment (``make vllm``)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerFast

from benchmarks.audit_method import Method
from benchmarks.shapes import Shape, make_model
from guardtrace_proxy.auditor import BUILT_IN, labels
from guardtrace_proxy.auditor.checkpoint import load_checkpoint
from guardtrace_proxy.auditor.growing import common_length
from guardtrace_proxy.auditor.vllm import VllmAuditor
from tests.vllm.checkpoints import NANO as NANO_FOLDER
from tests.vllm.checkpoints import write_processor
from tests.vllm.servers import ENVIRONMENT

ROOM = 1024
"""Tokens of a prompt beside the trace."""
UNSAID = 1
"""vLLM isn't given the ``0`` behind which the second read is made."""


class Counting(VllmAuditor):
    """Counts the prompt tokens that the engine didn't have in its cache."""

    tokens_read = 0
    caches = True

    def _engine_settings(self) -> Any:
        return replace(super()._engine_settings(), enable_prefix_caching=self.caches)

    async def generate(self, prompt: dict[str, Any], most: int, priority: int) -> Any:
        output = await super().generate(prompt, most, priority)
        self.tokens_read += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        return output


@asynccontextmanager
async def vllm_methods(shape: Shape, longest: int) -> AsyncIterator[list[Method]]:
    """Two engines, one after the other in use, both started."""
    os.environ.update(ENVIRONMENT)
    labels.SETTLED_SHARE = float("inf")  # else random weights would need a second request, as trained ones rarely do
    with TemporaryDirectory(prefix="audit-cost-") as name:
        folder = Path(name)
        make_model(shape, load_checkpoint(BUILT_IN)).save_pretrained(folder)
        copy(NANO_FOLDER / "chat_template.jinja", folder / "chat_template.jinja")
        write_processor(folder, PreTrainedTokenizerFast.from_pretrained(NANO_FOLDER))
        methods: list[Method] = []
        try:
            for caches in (True, False):
                auditor = Counting(str(folder), max_context=longest + ROOM)
                auditor.caches = caches
                await auditor.start()
                methods.append(_method(auditor))
            yield methods
        finally:
            for method in methods:
                await method.auditor.aclose()


def _method(auditor: Counting) -> Method:
    if auditor.caches:
        return Method("vllm", auditor, lambda: auditor.tokens_read, unsaid=UNSAID)
    layout, system, opening = auditor.layout, auditor.system_prompt, auditor.labels.opening
    empty = layout.prompt(system, "", [], opening)
    named = layout.prompt(system, "Another", [], opening)
    return Method(
        "vllm reprefill", auditor, lambda: auditor.tokens_read, rereads=common_length(empty, named), unsaid=UNSAID
    )
