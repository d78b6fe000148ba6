"""The local auditor on vLLM's engine, in this process's charge: concurrent audits share batches and read prefixes once.

Prompts go in as token ids, so text of a request or a reply never becomes a control token.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import AutoConfig, GenerationConfig
from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from guardtrace_proxy.auditor import BUILT_IN
from guardtrace_proxy.auditor.abilities import FIRST, LATER
from guardtrace_proxy.auditor.checkpoint import end_ids, own_calibration, own_settings
from guardtrace_proxy.auditor.context import DEFAULT_CONTEXT, JOINT_TOKENS, check_context, prompt_tokens, query_tokens
from guardtrace_proxy.auditor.hub import hub_asked_once
from guardtrace_proxy.auditor.labels import LabelRead, LabelTokens, Shares, likeliest, read_in_steps
from guardtrace_proxy.auditor.layout import Layout, Stretches
from guardtrace_proxy.auditor.processor import ImageOnlyProcessor, load_processor
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Trace, user_text
from guardtrace_proxy.auditor.protocol import (
    AuditorFailure,
    AuditorSettingsError,
    Depth,
    DoesNotFit,
    FailureKind,
)
from guardtrace_proxy.auditor.reply import GuardReply, UnreadableReply, judgment_place, parse_reply
from guardtrace_proxy.auditor.salts import Salts
from guardtrace_proxy.auditor.window import GAP, Window, check_shapes, fit_turns
from guardtrace_proxy.images.fitting import smaller
from guardtrace_proxy.policy.levels import Probabilities, Verdict

MAX_IMAGES = 64
"""The engine's own limit; the request's is ``images.max_count``."""
ON_A_CPU = {"dtype": "float32", "block_size": 32, "enforce_eager": True}
Positions = Sequence[dict[int, Any]]
"""Of each written token the log probabilities that were asked for, by token id."""


class VllmAuditor:
    """A checkpoint on vLLM's engine. See :class:`guardtrace_proxy.auditor.protocol.Auditor`."""

    def __init__(
        self,
        model: str,
        *,
        annotate_max_tokens: int = 512,
        max_context: int | None = None,
        system_prompt: str | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.name = model
        self.warnings: tuple[str, ...] = tuple(warnings)
        self.annotate_max_tokens = annotate_max_tokens
        self.max_context = max_context or DEFAULT_CONTEXT
        self.escalate_at: float | None = None
        self.temperature = 1.0
        self._system_prompt = system_prompt
        self.salt = Salts().of
        self._numbers = itertools.count()
        self._engine: Any = None

    async def start(self) -> None:
        if self.name == BUILT_IN:
            raise AuditorSettingsError(f"auditor.model: {BUILT_IN} runs with backend transformers alone")
        try:
            with hub_asked_once(self.name):
                own = own_settings(self.name)
                self.max_context = min(self.max_context, own.get("max_context") or self.max_context)
                if (calibration := own_calibration(self.name)) is not None:
                    self.temperature, self.escalate_at = calibration.temperature, calibration.escalate_at
                check_context(self.max_context)
                self._use(load_processor(self.name, local_files_only=constants.HF_HUB_OFFLINE))
            # in the event loop's own thread, since vLLM sets signal handlers; nothing is served before it is up
            self._engine = AsyncLLM.from_engine_args(self._engine_settings())
        except AuditorSettingsError:
            raise
        except Exception as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise AuditorSettingsError(f"auditor.model: {self.name} can't be run by vLLM: {problem}") from error
        self.system_prompt = self._system_prompt or own.get("system_prompt") or SYSTEM_PROMPT
        if own.get("purpose") == "demonstration":
            self.warnings += (f"auditor {self.name} is for demonstration and tests: it doesn't protect people",)

    def _use(self, processor: ImageOnlyProcessor) -> None:
        self.layout = Layout(processor)
        self.labels = LabelTokens.of(self.layout)
        self.processor = processor
        offline = constants.HF_HUB_OFFLINE
        config = AutoConfig.from_pretrained(self.name, local_files_only=offline, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(self.name, local_files_only=offline)
        except OSError:  # most of one's own have none
            generation = None
        self.ends = end_ids(generation, config, processor)

    def _engine_settings(self) -> AsyncEngineArgs:
        settings: dict[str, Any] = {} if torch.cuda.is_available() else dict(ON_A_CPU)
        return AsyncEngineArgs(
            model=self.name,
            load_format="safetensors",
            trust_remote_code=False,
            max_model_len=self.max_context,
            limit_mm_per_prompt={"image": MAX_IMAGES, "video": 0},
            enable_prefix_caching=True,
            scheduling_policy="priority",
            enable_log_requests=False,
            **settings,
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt may have."""
        return prompt_tokens(self.max_context, self.annotate_max_tokens)

    def image_tokens(self, image: Image.Image) -> int:
        """Tokens that the model makes of it."""
        made = self.processor.image_processor
        patches = made.get_number_of_image_patches(image.height, image.width, {})
        return int(patches) // int(made.merge_size) ** 2

    async def open(self, query: Query) -> VllmSession:
        check_shapes(query.images)
        images = [await anyio.to_thread.run_sync(smaller, image.pixels) for image in query.images]
        return await anyio.to_thread.run_sync(VllmSession, self, query, images)

    async def generate(self, prompt: dict[str, Any], most: int, priority: int) -> Any:
        """The engine's output for at most ``most`` tokens, greedily. Cancelling aborts the request.

        Raises:
            AuditorFailure: the engine failed.
        """
        if self._engine is None:
            raise AuditorFailure(FailureKind.CANCELLED, "the auditor isn't started")
        labels = self.labels
        parameters = SamplingParams(
            temperature=0,
            max_tokens=most,
            logprob_token_ids=sorted({labels.zero, labels.half, labels.one, *self.ends}),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        number = f"audit-{next(self._numbers)}"
        stream = self._engine.generate(TokensPrompt(**prompt), parameters, number, priority=priority)
        try:
            outputs = [output async for output in stream]
        except Exception as error:
            raise AuditorFailure(FailureKind.BROKEN, f"vLLM raised {type(error).__name__}") from error
        if not outputs or not outputs[-1].outputs:
            raise AuditorFailure(FailureKind.BROKEN, "vLLM ended an audit without any output")
        return outputs[-1]

    async def aclose(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await anyio.to_thread.run_sync(engine.shutdown)


class VllmSession:
    """One query under audit."""

    def __init__(self, auditor: VllmAuditor, query: Query, images: Sequence[Image.Image]) -> None:
        self._auditor = auditor
        self._images = list(images)
        self._image_tokens = [auditor.image_tokens(image) for image in images]
        self._stretches: Stretches = {}
        self._salt = auditor.salt(query.tenant)
        if sum(self._image_tokens) > auditor.prompt_tokens // 2:
            raise DoesNotFit("messages", "the images are more than the auditor's context takes: send fewer")
        limit = query_tokens(auditor.prompt_tokens)
        most_bytes = auditor.layout.most_bytes(limit)
        self._query = fit_turns(query.turns, lambda text: self._size(text) <= limit, most_bytes)
        room = auditor.prompt_tokens - self._size(self._query) - JOINT_TOKENS
        self.capacity = max(1, room // auditor.layout.most_tokens_per_byte)
        self._window = Window()

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        began = time.perf_counter()
        if depth is Depth.LABEL:
            probabilities = await self._label(trace)
            return Verdict(likeliest(probabilities), probabilities, depth=depth.value, milliseconds=_since(began))
        ids = self._place(trace, None)
        most = min(self._auditor.annotate_max_tokens, self._auditor.max_context - self._length(ids))
        written = await self._generate(ids, most, LATER)
        text = self._auditor.layout.decode(written.token_ids)
        try:
            reply = parse_reply(text, truncated=written.finish_reason != "stop")
        except UnreadableReply as error:
            raise AuditorFailure(FailureKind.UNREADABLE, str(error)) from error
        probabilities_there = await self._at_judgment(ids, list(written.token_ids), written.logprobs, reply)
        return Verdict(reply.level, probabilities_there, reply.analysis, milliseconds=_since(began))

    async def aclose(self) -> None:
        self._images = []

    async def _label(self, trace: Trace) -> Probabilities:
        labels = self._auditor.labels
        ids = self._place(trace, labels.opening)
        written = await self._generate(ids, 2 if labels.shared else 1, FIRST)
        read = await self._read(ids, list(written.token_ids), written.logprobs)
        return read.probabilities(shared=labels.shared, temperature=self._auditor.temperature)

    async def _at_judgment(
        self, prompt: Sequence[int], written: list[int], positions: Positions, reply: GuardReply
    ) -> Probabilities | None:
        """The labels' probabilities where the written judgment stands; None where they can't be read there, or say
        something else: then it was a place where a judgment is quoted."""
        labels = self._auditor.labels
        index = judgment_place(written, reply, labels.first(reply.level), self._auditor.layout.decode)
        if index is None:
            return None
        read = await self._read([*prompt, *written[:index]], written[index:], positions[index:])
        try:
            probabilities = read.probabilities(shared=labels.shared)
        except AuditorFailure:
            return None
        return probabilities if likeliest(probabilities) is reply.level else None

    async def _read(self, ids: Sequence[int], written: list[int], positions: Positions) -> LabelRead:
        """From what was written behind ``ids``."""
        labels = self._auditor.labels

        async def behind_zero() -> Shares:
            if written[0] == labels.zero and len(positions) > 1:
                return self._shares(positions[1])
            return self._shares((await self._generate([*ids, labels.zero], 1, FIRST)).logprobs[0])

        return await read_in_steps(labels, self._auditor.ends, self._shares(positions[0]), behind_zero)

    def _shares(self, position: dict[int, Any]) -> Shares:
        labels = self._auditor.labels
        wanted = {labels.zero, labels.half, labels.one, *self._auditor.ends}
        if not wanted <= position.keys():
            raise AuditorFailure(FailureKind.UNREADABLE, "vLLM answered without the labels' probabilities")
        return {token: math.exp(position[token].logprob) for token in wanted}

    async def _generate(self, ids: Sequence[int], most: int, priority: int) -> Any:
        """What the engine wrote behind ``ids``, its images seen."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(ids), "cache_salt": self._salt}
        if self._images:
            prompt["multi_modal_data"] = {"image": self._images}
        output = await self._auditor.generate(prompt, most, priority)
        if len(output.prompt_token_ids) != self._length(ids):
            raise AuditorFailure(FailureKind.UNSEEN, "vLLM made another number of tokens of the images than expected")
        return output.outputs[0]

    def _place(self, trace: Trace, opening: Sequence[int] | None) -> list[int]:
        def build(thinking: str, answer: str) -> list[int] | None:
            ids = self._prompt(self._query, thinking, answer, opening)
            return ids if self._length(ids) <= self._auditor.prompt_tokens else None

        return self._window.place(trace, build)

    def _prompt(self, query: str, thinking: str, answer: str, opening: Sequence[int] | None) -> list[int]:
        """One token an image: vLLM puts in the rest."""
        layout, user = self._auditor.layout, user_text(query, thinking, answer)
        return layout.prompt(self._auditor.system_prompt, user, [1] * len(self._images), opening, self._stretches)

    def _size(self, query: str) -> int:
        """Tokens of the prompt before any trace."""
        return self._length(self._prompt(query, GAP, GAP, self._auditor.labels.opening))

    def _length(self, ids: Sequence[int]) -> int:
        return len(ids) + sum(self._image_tokens) - len(self._image_tokens)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
