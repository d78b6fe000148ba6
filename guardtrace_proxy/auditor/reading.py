"""What a model has read so far: token ids, and keys and values in buffers that grow by doubling.

transformers' own cache copies everything at each step; an audit that reads sixty tokens behind ten thousand mustn't.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 256
"""Tokens of the smallest buffer."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [1, heads, length, width]: views of a buffer that is longer than they are."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, heads, new, width]; returns all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        keys, values = self._with_room(end, key_states, value_states)
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _with_room(self, end: int, like_keys: torch.Tensor, like_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._buffers is not None and self._buffers[0].shape[-2] >= end:
            return self._buffers
        room = max(LEAST_ROOM, 1 << (end - 1).bit_length())
        keys, values = (like.new_empty(*like.shape[:-2], room, like.shape[-1]) for like in (like_keys, like_values))
        start = self.get_seq_length()
        if start:
            keys[..., :start, :] = self.keys
            values[..., :start, :] = self.values
        self._buffers = keys, values
        return self._buffers

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers or ())

    def head(self, length: int) -> GrowingLayer:
        """The first ``length`` tokens, in buffers of their own."""
        layer = GrowingLayer()
        if length:
            layer.update(self.keys[..., :length, :], self.values[..., :length, :])
        return layer


class Reading:
    """The tokens that were read, and where the next one stands.

    ``offset`` is added to a token's index to give its position: images take fewer positions than tokens.
    """

    def __init__(self, layers: Sequence[GrowingLayer], ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.offset = 0
        self.layers = list(layers)
        self.cache = Cache(layers=self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    def common(self, ids: Sequence[int]) -> int:
        """How many of ``ids``, from the beginning, were read already."""
        for at, (read, wanted) in enumerate(zip(self.ids, ids, strict=False)):
            if read != wanted:
                return at
        return min(len(self.ids), len(ids))

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if length < len(self.ids):
            self.cache.crop(length - len(self.ids))
            del self.ids[length:]

    def head(self, length: int) -> Reading:
        """A reading of the first ``length`` tokens, which stand before any image, in memory of its own."""
        return Reading([layer.head(length) for layer in self.layers], self.ids[:length])
