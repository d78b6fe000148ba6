"""Tokenizer and token embeddings of the embedded auditor: frozen, and read from a checkpoint folder.

They were derived once from SmolLM2-135M-Instruct (see :mod:`guardtrace_trainer.nano.derive`) and ship with
``builtin:nano``, so training needs no other model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import guardtrace_proxy

SHIPPED = Path(guardtrace_proxy.__file__).parent / "auditor" / "nano"
EMBEDDING_RMS = 0.1
EMBEDDING_KEYS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
"""As written by ``derive`` and by transformers' ``save_pretrained``."""
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's control tokens; they have the first ids."""

_folder = SHIPPED


def use(folder: Path) -> None:
    """Read tokenizer and embeddings from another folder from now on."""
    global _folder
    _folder = folder
    make_tokenizer.cache_clear()


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: control tokens, then bytes, then the first merges' tokens."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(_folder / "tokenizer.json")),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CONTROL[1:]),
        model_max_length=8192,
    )
    fast.padding_side = "left"
    return fast


def read_embeddings() -> torch.Tensor:
    """Embeddings float32 [vocabulary, hidden]."""
    with safe_open(_folder / "model.safetensors", "pt") as file:
        key = next(key for key in EMBEDDING_KEYS if key in file.keys())  # noqa: SIM118
        tensor: torch.Tensor = file.get_tensor(key)
    return tensor.float()


def token_ids(text: str) -> list[int]:
    """Ids of a text without control tokens added."""
    ids: Sequence[int] = make_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def token_ends(text: str) -> tuple[list[int], list[int]]:
    """The same ids, and the offset in the text behind each token."""
    found = make_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
