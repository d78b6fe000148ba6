"""Writes the warmed-up network as a checkpoint folder: weights, tokenizer, processor, own settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import Qwen2VLImageProcessorPil

from guardtrace_proxy.auditor.processor import ImageOnlyProcessor
from guardtrace_trainer.nano.corpus import SYSTEM_PROMPT
from guardtrace_trainer.nano.model import MAX_CONTEXT
from guardtrace_trainer.nano.plan import WarmUp
from guardtrace_trainer.nano.render import SIDE
from guardtrace_trainer.nano.trainee import Trainee
from guardtrace_trainer.nano.vocabulary import make_tokenizer

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Qwen2.5-VL's layout, without video."""


def make_processor() -> ImageOnlyProcessor:
    """The processor of the shipped checkpoint: every image becomes about 112 × 112 pixels, 16 tokens."""
    return ImageOnlyProcessor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE),
        tokenizer=make_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def export(trainee: Trainee, plan: WarmUp, seed: int, folder: Path) -> None:
    """Write the warm-up's result in float32; an older folder of the same name goes."""
    shutil.rmtree(folder, ignore_errors=True)
    trainee.model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    settings = {
        "system_prompt": SYSTEM_PROMPT,
        "max_context": MAX_CONTEXT,
        "purpose": "demonstration",
        "warm_up": {
            "seed": seed,
            **plan.model_dump(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }
    (folder / "guardtrace.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
