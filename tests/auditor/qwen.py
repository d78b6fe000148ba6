"""Qwen's own vocabulary as a processor: what the published model reads, without its weights.

The file is in the wheel of `dashscope` (Apache-2.0): `pip install --no-deps dashscope`.
"""

from __future__ import annotations

import base64
import importlib.util
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from guardtrace_proxy.auditor.processor import ImageOnlyProcessor
from tests.auditor.checkpoints import CHAT_TEMPLATE, QWEN_WORDS

SPECIAL = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
    "vision_end vision_pad image_pad video_pad"
).split()
ADDED = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()
CONTROL = [
    *(f"<|{name}|>" for name in SPECIAL),
    "<tool_call>",
    "</tool_call>",
    *(f"<|{name}|>" for name in ADDED),
]
"""In the order of their ids, from 151643 on."""


def vocabulary() -> Path | None:
    """The file of tokens and ranks, or None where the package isn't installed."""
    package = importlib.util.find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    return path if path.is_file() else None


def make_qwen_processor(path: Path) -> ImageOnlyProcessor:
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, path.read_text("ascii").splitlines())}
    tokenizer = Tokenizer(models.BPE({_written(token): rank for token, rank in ranks.items()}, _merges(ranks)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = {f"<|{name}|>" for name in SPECIAL}
    tokenizer.add_tokens([AddedToken(token, special=token in special, normalized=False) for token in CONTROL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=8192
    )
    return ImageOnlyProcessor(image_processor=Qwen2VLImageProcessorPil(), tokenizer=fast, chat_template=CHAT_TEMPLATE)


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """For each token of several bytes the two that make it: what is left when all earlier merges are done in it."""
    return [
        (_written(left), _written(right))
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
        for left, right in [_halves(token, ranks)]
    ]


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[at : at + 1] for at in range(len(token))]
    never = len(ranks)
    while len(parts) > 2:
        joined = [ranks.get(left + right, never) for left, right in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _written(token: bytes) -> str:
    return "".join(map(_BYTES.__getitem__, token))


def _byte_letters() -> list[str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTES = _byte_letters()
