"""One forward pass over pieces of several readings: everything but attention sees one long row of tokens.

Nothing is padded and no keys are copied together: each piece attends to its own reading, in place. Left-padding the
kept keys to one length instead would copy all of them at each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from guardtrace_proxy.auditor.reading import GrowingLayer, Reading

PACKED = "guardtrace_packed"
"""The name under which transformers finds :func:`packed_attention`."""


CACHE_ARGUMENT = "cache" if "cache" in signature(Qwen2_5_VLTextModel.forward).parameters else "past_key_values"
"""What the model's forward calls its cache: renamed in transformers 5.24."""


class PackedCache:
    """Stands where transformers expects a cache: hands the new keys and values to the readings they belong to."""

    def __init__(self, readings: Sequence[Reading], lengths: Sequence[int], device: torch.device) -> None:
        self._readings = readings
        self.lengths = list(lengths)
        self.masks = [
            _causal(new, len(reading.ids) + new, device) for reading, new in zip(readings, lengths, strict=True)
        ]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Append [1, heads, all new tokens, width], piece by piece; :func:`packed_attention` gets the layers."""
        layers = [reading.layers[layer_idx] for reading in self._readings]
        keys = torch.split(key_states[0], self.lengths, dim=1)
        values = torch.split(value_states[0], self.lengths, dim=1)
        for layer, key, value in zip(layers, keys, values, strict=True):
            layer.append(key, value)
        return layers, self


def _causal(new: int, length: int, device: torch.device) -> torch.Tensor | None:
    """[new, length]: what each of the last ``new`` tokens sees; None where it sees everything."""
    if new == 1:
        return None
    return torch.ones(new, length, dtype=torch.bool, device=device).tril(length - new)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    layers: Sequence[GrowingLayer],
    cache: PackedCache,
    attention_mask: None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, all new tokens, width] to [1, all new tokens, heads, width].

    Heads that share keys stand as further rows of one head, so that keys and values needn't be repeated.
    """
    mixed: list[torch.Tensor] = []
    for piece, layer, mask in zip(torch.split(query[0], cache.lengths, dim=1), layers, cache.masks, strict=True):
        heads, new, width = piece.shape
        shared = heads // layer.keys.shape[0]
        rows = piece.reshape(1, -1, shared * new, width)  # with a batch of one, since fused kernels want four axes
        seen = None if mask is None else mask.repeat(shared, 1)
        out = F.scaled_dot_product_attention(rows, layer.keys[None], layer.values[None], attn_mask=seen, scale=scaling)
        mixed.append(out.reshape(heads, new, width))
    return torch.cat(mixed, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(PACKED, packed_attention)
