"""The two checkpoints that the tests serve with a real vLLM: the embedded auditor, and a thinking model that knows a few
replies by heart."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

import guardtrace_proxy

NANO = Path(guardtrace_proxy.__file__).parent / "auditor" / "nano"
HEAD, WIDE_HEAD = 48, 64
"""The embedded auditor's head size, and the nearest that vLLM's attention on a CPU knows."""
HIDDEN, WIDE_HIDDEN = 192, 256
THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Memory:
    """What the thinking model writes when it is asked ``question``, with an image before it or without.

    ``completes``: the question alone is the prompt, and no template stands about it.
    """

    question: str
    thinking: str
    answer: str
    image: Image.Image | None = None
    completes: bool = False

    @property
    def written(self) -> str:
        return f"<think>\n{self.thinking}\n</think>\n\n{self.answer}<|im_end|>"


def write_nano(folder: Path) -> Path:
    """The embedded auditor with its heads and its width padded by zeros: the same function, for vLLM on a CPU.

    A rotation by ``theta ** (-i / 24)`` is one by ``(theta ** (32 / 24)) ** (-i / 32)``, so the padded heads turn alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "guardtrace.json"):
        shutil.copy(NANO / name, folder / name)
    config = json.loads((NANO / "config.json").read_text("utf-8"))
    text = config["text_config"]
    rope = text["rope_parameters"]
    grown = (WIDE_HEAD - HEAD) // 2
    rope["rope_theta"] **= WIDE_HEAD / HEAD
    rope["mrope_section"][-1] += grown
    text["rms_norm_eps"] *= HIDDEN / WIDE_HIDDEN
    text["hidden_size"] = config["vision_config"]["out_hidden_size"] = WIDE_HIDDEN
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    weights = {name: _widened(name, weight.float()) for name, weight in load_file(NANO / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_processor(folder, PreTrainedTokenizerFast.from_pretrained(NANO))
    return folder


def _widened(name: str, weight: torch.Tensor) -> torch.Tensor:
    """One tensor of the padded checkpoint."""
    if name.startswith("visual."):
        return _padded(weight, 0) if ".merger.mlp.2." in name else weight.contiguous()
    if "self_attn.o_proj" in name:
        return _padded(_wide_heads(weight.T).T, 0)
    if "self_attn" in name:
        weight = _wide_heads(weight)
        if "q_proj" in name:
            weight = weight * math.sqrt(WIDE_HEAD / HEAD)
        return _padded(weight, 1) if weight.ndim == 2 else weight.contiguous()
    if "norm" in name:
        return _padded(weight * math.sqrt(HIDDEN / WIDE_HIDDEN), 0)
    return _padded(weight, 0 if "down_proj" in name else 1)


def _wide_heads(weight: torch.Tensor) -> torch.Tensor:
    """Rows are heads one after the other; each half of a head grows by zeros at its end."""
    halves = weight.reshape(-1, HEAD // 2, *weight.shape[1:])
    rows = torch.zeros(halves.shape[0], WIDE_HEAD // 2, *weight.shape[1:])
    rows[:, : HEAD // 2] = halves
    return rows.reshape(-1, *weight.shape[1:])


def _padded(weight: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(weight.shape)
    shape[dim] = WIDE_HIDDEN
    wide = torch.zeros(shape)
    wide.narrow(dim, 0, weight.shape[dim]).copy_(weight)
    return wide


def write_thinker(folder: Path, memories: Sequence[Memory], *, steps: int = 260) -> Path:
    """A small model that was taught to write each memory after its question; it thinks in ``<think>`` tags."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(NANO)
    tokenizer.add_tokens(list(THINK))
    shutil.copy(NANO / "chat_template.jinja", folder / "chat_template.jinja")
    processor = write_processor(folder, tokenizer)
    torch.set_num_threads(1)  # faster than two, for so small a model
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(_thinker_config(tokenizer))
    batches = [_lesson(processor, memory) for memory in memories]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        losses = [model(**batch).loss for batch in batches]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if max(float(loss.detach()) for loss in losses) < 0.02:
            break
    else:
        raise AssertionError(f"the thinking model didn't learn its replies: losses {[float(loss) for loss in losses]}")
    model.save_pretrained(folder)
    return folder


def _lesson(processor: Any, memory: Memory) -> dict[str, torch.Tensor]:
    content: list[dict[str, Any]] = [{"type": "text", "text": memory.question}]
    if memory.image is not None:
        content.insert(0, {"type": "image"})
    prompt = memory.question
    if not memory.completes:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = None if memory.image is None else [memory.image]
    batch = dict(processor(text=[prompt + memory.written], images=images, return_tensors="pt"))
    asked = processor(text=[prompt], images=images, return_tensors="pt")["input_ids"].shape[1]
    labels = batch["input_ids"].clone()
    labels[:, :asked] = -100
    return {**batch, "labels": labels}


def _thinker_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = tokenizer.convert_tokens_to_ids
    ends = {
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 8192,
            "rope_parameters": rope,
            **ends,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        **ends,
    )


def write_processor(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The stock processor, which vLLM insists on, with the embedded auditor's image settings."""
    settings = json.loads((NANO / "processor_config.json").read_text("utf-8"))["image_processor"]
    settings.pop("image_processor_type")
    template = (folder / "chat_template.jinja").read_text("utf-8")
    tokenizer.chat_template = template
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**settings), tokenizer, Qwen2VLVideoProcessor(), chat_template=template
    )
    processor.save_pretrained(folder)
    return processor
