"""What a model has read so far: token ids, and keys and values in buffers that grow by doubling.

transformers' own cache copies everything at each step; an audit that reads sixty tokens behind ten thousand mustn't.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guardtrace_proxy.auditor.growing import common_length

LEAST_ROOM_TOKENS = 256
"""Tokens of the smallest buffer."""


class GrowingLayer:
    """Keys and values of one layer, [heads, length, width]: views of buffers that are longer than they are."""

    def __init__(self) -> None:
        self.length = 0
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def keys(self) -> torch.Tensor:
        assert self._buffers is not None
        return self._buffers[0][:, : self.length]

    @property
    def values(self) -> torch.Tensor:
        assert self._buffers is not None
        return self._buffers[1][:, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers or ())

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take [heads, new, width] behind what is there."""
        start, end = self.length, self.length + keys.shape[1]
        buffers = self._with_room(end, keys, values)
        buffers[0][:, start:end] = keys
        buffers[1][:, start:end] = values
        self.length = end

    def _with_room(self, end: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._buffers is not None and self._buffers[0].shape[1] >= end:
            return self._buffers
        room = max(LEAST_ROOM_TOKENS, 1 << (end - 1).bit_length())
        larger = tuple(like.new_empty(like.shape[0], room, like.shape[2]) for like in (keys, values))
        if self.length:
            larger[0][:, : self.length] = self.keys
            larger[1][:, : self.length] = self.values
        self._buffers = larger[0], larger[1]
        return self._buffers

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.length = min(self.length, length)

    def head(self, length: int) -> GrowingLayer:
        """The first ``length`` tokens, in buffers of their own."""
        layer = GrowingLayer()
        if length:
            layer.append(self.keys[:, :length], self.values[:, :length])
        return layer


class Reading:
    """The tokens that were read, and where the next one stands.

    ``offset`` is added to a token's index to give its position: images take fewer positions than tokens.
    """

    def __init__(self, layers: Sequence[GrowingLayer], ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.offset = 0
        self.layers = list(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    def common(self, ids: Sequence[int]) -> int:
        """How many of ``ids``, from the beginning, were read already."""
        return common_length(self.ids, ids)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, and what a broken pass left behind in some of the layers."""
        del self.ids[length:]
        for layer in self.layers:
            layer.crop(len(self.ids))

    def head(self, length: int) -> Reading:
        """A reading of the first ``length`` tokens, which stand before any image, in memory of its own."""
        return Reading([layer.head(length) for layer in self.layers], self.ids[:length])
