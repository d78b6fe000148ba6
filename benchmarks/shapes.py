"""Auditors with random weights: the shape decides what an audit costs, not what the weights have learnt.

Tokenizer and image processor are the embedded auditor's; the number of embeddings is the shape's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from guardtrace_proxy.auditor import BUILT_IN
from guardtrace_proxy.auditor.checkpoint import Checkpoint, load_checkpoint
from guardtrace_proxy.auditor.transformers import TransformersAuditor

CONTEXT = 32_768
SENTENCES = (
    "The user wants a plan for the week, so I look at what has to be done first. ",
    "On Monday the shop is closed and the bread has to be bought on the day before. ",
    "Two and two make four, then I take away one and write the number down. ",
    "Perhaps the train is late, in which case the second way is the better one. ",
    "Let me read the question again, since a small word may change what is asked for. ",
    "It isn't clear to me whether the table has three legs or four, and I should say so. ",
)


@dataclass(frozen=True)
class Shape:
    """``text`` and ``vision`` are settings of Qwen2.5-VL's two parts."""

    text: dict[str, Any]
    vision: dict[str, Any]


SHAPES = {
    "7.7M": Shape(
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        {"depth": 4, "hidden_size": 192, "intermediate_size": 512, "num_heads": 4, "fullatt_block_indexes": [3]},
    ),
    # https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/config.json
    "3B": Shape(
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
}


def make_auditor(shape: Shape, *, kv_cache_bytes: int | None = None) -> TransformersAuditor:
    """A started auditor: float32 on a CPU, bfloat16 on a GPU."""
    nano = load_checkpoint(BUILT_IN)
    auditor = TransformersAuditor("random weights", max_context=CONTEXT, kv_cache_bytes=kv_cache_bytes)
    auditor.use(Checkpoint(make_model(shape, nano), nano.processor, end_ids=nano.end_ids))
    return auditor


def make_model(shape: Shape, nano: Checkpoint) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, for the embedded auditor's tokens."""
    own = nano.model.config
    text = {"vocab_size": own.get_text_config().vocab_size, **shape.text}
    config = Qwen2_5_VLConfig(
        text_config={**text, "max_position_embeddings": CONTEXT, "bos_token_id": None, "eos_token_id": None},
        vision_config={
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            **shape.vision,
        },
        image_token_id=own.image_token_id,
        video_token_id=own.video_token_id,
        vision_start_token_id=own.vision_start_token_id,
        vision_end_token_id=own.vision_end_token_id,
        tie_word_embeddings=True,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.train(False)
    model.requires_grad_(False)
    return model


def parameters(auditor: TransformersAuditor) -> int:
    """How many the language model has, without the embeddings, which cost nothing to read."""
    language = auditor.checkpoint.model.model.language_model
    return int(sum(each.numel() for each in language.parameters()) - language.embed_tokens.weight.numel())


def reasoning(auditor: Any, tokens: int, every: int) -> list[str]:
    """The beginnings of a trace of so many tokens, one each ``every`` tokens."""
    text = "".join(SENTENCES) * (tokens // 50 + 1)
    ends = [end for _, end in auditor.layout.offsets(text)]
    return [text[: ends[count - 1]] for count in range(every, tokens + 1, every)]
