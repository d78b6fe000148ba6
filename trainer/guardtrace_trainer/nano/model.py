"""The network: Qwen2.5-VL's own class with small numbers, and fast paths for training it on a CPU.

Shapes: text hidden 192, 4 layers, 4 heads of which 2 for keys and values; vision hidden 160, 4 blocks, patch 14,
merge 2. All blocks of the vision tower see the whole image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from guardtrace_trainer.nano.render import CELLS, CLASSES, PATCHES
from guardtrace_trainer.nano.vocabulary import EMBEDDING_RMS, make_tokenizer, read_embeddings

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 192, 4, 4, 2, 512
VISION_HIDDEN, VISION_DEPTH, VISION_HEADS, VISION_FEED_FORWARD = 160, 4, 5, 416
LOOKS_BACK = (1, 2, 1, 3)
"""How many tokens back each head of the first layer looks at the start: so words in a row are read from the first
step on."""
SHARPNESS, FREQUENCIES = 5.0, 5
"""Of that look: of the biases that make it, and how many of the rotary frequencies, the fastest ones, tell neighbours
apart."""
NEAR = ((5, 6, 8, 9, 11, 13), (7, 8, 9, 10, 11, 12), (8, 9, 10, 11, 12, 13), ())
"""Of each head of the second layer the rotary frequencies by which it looks near at the start, at most some 10, 20 and
30 tokens back; the last one looks everywhere. So a sentence is read by itself. Several frequencies, since the cosines
of few are in step again further back."""
NEARNESS = 8.0
"""Of that look: what it adds to an attention's logit at distance 0."""
MAX_CONTEXT = 704
"""Beyond it the trained model often forgets to write a judgment: long examples are rare in the corpus."""
IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
"""Qwen2-VL's own normalisation (CLIP's)."""


def control_id(token: str) -> int:
    """The id of a control token."""
    return int(make_tokenizer().convert_tokens_to_ids(token))


def make_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained network, its embeddings in place."""
    half = HIDDEN // HEADS // 2
    side = half * 3 // 8
    ends = {
        "bos_token_id": control_id("<|endoftext|>"),
        "eos_token_id": control_id("<|im_end|>"),
        "pad_token_id": control_id("<|endoftext|>"),
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(make_tokenizer()),
            "hidden_size": HIDDEN,
            "intermediate_size": FEED_FORWARD,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * side, side, side],
            },
            **ends,
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 1120,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
        },
        image_token_id=control_id("<|image_pad|>"),
        video_token_id=control_id("<|video_pad|>"),
        vision_start_token_id=control_id("<|vision_start|>"),
        vision_end_token_id=control_id("<|vision_end|>"),
        tie_word_embeddings=True,
        **ends,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.copy_(read_embeddings())
        _look_back(model.model.language_model)
        _look_near(model.model.language_model)
    return model


def _look_back(language: Any) -> None:
    """Biases of queries and keys alone make an attention by distance: their product, once both are turned by their
    positions, is the sum of the cosines of (distance - wanted distance) times each frequency."""
    attention = language.layers[0].self_attn
    width = HIDDEN // HEADS
    angles = language.rotary_emb.inv_freq[:FREQUENCIES]
    queries, keys = (
        attention.q_proj.bias.view(HEADS, 2, width // 2),
        attention.k_proj.bias.view(KV_HEADS, 2, width // 2),
    )
    keys[:, 0, :FREQUENCIES] = SHARPNESS
    for head, back in enumerate(LOOKS_BACK):
        queries[head, 0, :FREQUENCIES] = SHARPNESS * torch.cos(back * angles)
        queries[head, 1, :FREQUENCIES] = -SHARPNESS * torch.sin(back * angles)


def _look_near(language: Any) -> None:
    """As :func:`_look_back` with slower frequencies and no distance wanted: their cosines fall off smoothly."""
    attention = language.layers[1].self_attn
    width = HIDDEN // HEADS
    queries = attention.q_proj.bias.view(HEADS, 2, width // 2)
    keys = attention.k_proj.bias.view(KV_HEADS, 2, width // 2)
    for head, frequencies in enumerate(NEAR):
        for frequency in frequencies:
            keys[head * KV_HEADS // HEADS, 0, frequency] = SHARPNESS
            queries[head, 0, frequency] = NEARNESS / SHARPNESS * width**0.5 / len(frequencies)


def causal_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention as two batched products: at these lengths a CPU needs half the time of torch's own kernel.
    [batch, heads, length, d] to [batch, length, heads, d]."""
    batch, heads, length, width = query.shape
    q, k, v = (
        part.repeat_interleave(heads // part.shape[1], 1).reshape(batch * heads, length, width)
        for part in (query, key, value)
    )
    ahead = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    weights = torch.baddbmm(ahead, q, k.transpose(1, 2), alpha=scaling).softmax(-1)
    mixed = torch.bmm(weights, v)
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register("causal", causal_attention)


def class_vectors() -> torch.Tensor:
    """Fixed targets [classes, hidden]: what a vision token of each class is to look like to the language model."""
    generator = torch.Generator().manual_seed(123)
    return torch.randn(len(CLASSES), HIDDEN, generator=generator) * EMBEDDING_RMS


def patchify(images: np.ndarray) -> torch.Tensor:
    """uint8 [batch, 112, 112, 3] to [batch, 64, 1176], as Qwen2-VL's image processor lays patches out."""
    x = (images.astype(np.float32) / 255 - IMAGE_MEAN) / IMAGE_STD
    x = x.transpose(0, 3, 1, 2).reshape(len(x), 3, CELLS, 2, 14, CELLS, 2, 14)
    x = x.transpose(0, 2, 5, 3, 6, 1, 4, 7)
    x = np.repeat(x[:, :, :, :, :, :, None], 2, 6)
    return torch.from_numpy(np.ascontiguousarray(x).reshape(len(x), PATCHES**2, -1))


def patch_order(letters: np.ndarray) -> np.ndarray:
    """[8, 8] to [64] in the order of ``patchify``."""
    ordered: np.ndarray = letters.reshape(CELLS, 2, CELLS, 2).transpose(0, 2, 1, 3).reshape(-1)
    return ordered


def vision_rotations(vision: Any, device: torch.device) -> Any:
    """The rotary embedding of an 8 × 8 grid."""
    grid = torch.tensor([[1, PATCHES, PATCHES]], device=device)
    positions = modeling_qwen2_5_vl.get_vision_position_ids(grid, 2, kwargs={})
    return vision.rotary_pos_emb(torch.zeros(1, device=device), positions)


def see(vision: Any, patches: torch.Tensor, rotations: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The vision tower for a batch of equal grids: (hidden [batch, 64, d], tokens [batch, 16, hidden]).

    The same weights and the same result as the class's own forward, which takes images one behind the other.
    """
    batch, count, _ = patches.shape
    weight = vision.patch_embed.proj.weight
    hidden = patches @ weight.reshape(weight.shape[0], -1).T
    cosines, sines = rotations
    for block in vision.blocks:
        attention = block.attn
        states = attention.qkv(block.norm1(hidden)).reshape(batch, count, 3, attention.num_heads, -1)
        query, key, value = (part.transpose(1, 2) for part in states.unbind(2))
        query, key = (part * cosines + _rotate(part) * sines for part in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    tokens = vision.merger(hidden.reshape(batch * count, -1)).reshape(batch, count // 4, -1)
    return hidden, tokens


def _rotate(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
