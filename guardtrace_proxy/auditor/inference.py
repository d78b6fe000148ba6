"""Forward passes of one Qwen2.5-VL checkpoint: images, prefill in pieces, greedy decoding.

Each call keeps its own cache and passes explicit positions, since the model's ``rope_deltas`` are shared
mutable state (transformers 5.23). Nothing here knows prompts or verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from transformers import DynamicCache

from guardtrace_proxy.auditor.checkpoint import Checkpoint
from guardtrace_proxy.images.fitting import MAX_PIXELS

PREFILL_TOKENS = 512
"""Tokens of one forward pass: between two passes a cancelled audit is noticed."""

CheckStop = Callable[[], None]
"""Called between passes; raises where the caller doesn't want the result any more."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Images as the language model sees them.

    ``embeddings``: [image tokens of all images, hidden]. ``grid``: [images, 3], patches in time, height,
    width.
    """

    embeddings: torch.Tensor
    grid: torch.Tensor
    tokens: list[int]
    """For each image how many tokens it takes in the prompt."""


@dataclass(slots=True)
class Prefix:
    """What has been read so far: keys and values, and where the next token stands."""

    cache: DynamicCache
    length: int
    offset: int
    """Added to a token's index to give its position: images take fewer positions than tokens."""


class Inference:
    """The forward passes of one checkpoint. Not thread-safe; its user takes turns."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        self._processor = checkpoint.processor
        self._device = checkpoint.device
        self._text_config = checkpoint.model.config.get_text_config()

    def image_grid(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches [n, channels x patch pixels] and grid [images, 3].

        Images are made smaller to the processor's own pixel budget, or to what a remote auditor gets where that is
        less: Qwen2.5-VL's own may make more tokens of one photograph than the context takes.

        Raises:
            ValueError: an image is more than 200 times as long as wide.
        """
        processor = self._processor.image_processor
        most = min(processor.size["longest_edge"], MAX_PIXELS)
        size = {"shortest_edge": min(processor.size["shortest_edge"], most), "longest_edge": most}
        features = processor(images=list(images), size=size, return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def token_counts(self, grid: torch.Tensor) -> list[int]:
        """For each image of ``grid`` how many tokens it takes in the prompt."""
        merge = self._processor.image_processor.merge_size
        return [int(count) // merge**2 for count in grid.prod(-1)]

    @torch.inference_mode()
    def encode_images(self, pixels: torch.Tensor, grid: torch.Tensor) -> ImageFeatures:
        """Run the vision tower once; the result serves every audit of a session."""
        output = self._model.model.get_image_features(pixels.to(self._device), grid.to(self._device), return_dict=True)
        tokens = self.token_counts(grid)
        embeddings = torch.cat(list(output.pooler_output), dim=0)
        if embeddings.shape[0] != sum(tokens):
            raise RuntimeError(f"{embeddings.shape[0]} image features for {sum(tokens)} image tokens")
        return ImageFeatures(embeddings, grid, tokens)

    @torch.inference_mode()
    def prefill(
        self, ids: Sequence[int], images: ImageFeatures | None, keep: int, check_stop: CheckStop
    ) -> tuple[Prefix, torch.Tensor]:
        """Read a whole prompt.

        Returns:
            The prefix and the logits [keep, vocabulary] (float32) of its last ``keep`` tokens.
        """
        input_ids = torch.tensor([list(ids)], device=self._device)
        embeddings = self._embed(input_ids, images)
        positions, offset = self._positions(input_ids, images)
        prefix = Prefix(DynamicCache(config=self._text_config), 0, offset)
        last: list[torch.Tensor] = []
        for start in range(0, len(ids), PREFILL_TOKENS):
            check_stop()
            end = start + PREFILL_TOKENS
            hidden = self._forward(prefix, embeddings[:, start:end], positions[:, :, start:end])
            last = [*last, hidden][-(keep // PREFILL_TOKENS + 2) :]
        return prefix, self._logits(torch.cat(last, dim=1)[0, -keep:])

    @torch.inference_mode()
    def extend(self, prefix: Prefix, ids: Sequence[int]) -> torch.Tensor:
        """Read on; logits [len(ids), vocabulary] (float32)."""
        input_ids = torch.tensor([list(ids)], device=self._device)
        start = prefix.length + prefix.offset
        positions = torch.arange(start, start + len(ids), device=self._device).view(1, 1, -1).expand(3, 1, -1)
        embeddings = self._model.get_input_embeddings()(input_ids)
        return self._logits(self._forward(prefix, embeddings, positions)[0])

    def rewind(self, prefix: Prefix, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        prefix.cache.crop(length - prefix.length)
        prefix.length = length

    def _forward(self, prefix: Prefix, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
        prefix.length += embeddings.shape[1]
        return cast(torch.Tensor, output.last_hidden_state)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._model.lm_head(hidden)).float()

    def _embed(self, input_ids: torch.Tensor, images: ImageFeatures | None) -> torch.Tensor:
        embeddings = cast(torch.Tensor, self._model.get_input_embeddings()(input_ids))
        places = input_ids == self._processor.image_token_id
        expected = 0 if images is None else images.embeddings.shape[0]
        if int(places.sum()) != expected:
            raise RuntimeError(f"{int(places.sum())} image tokens in the prompt for {expected} image features")
        if images is None:
            return embeddings
        features = images.embeddings.to(embeddings.dtype)
        return embeddings.masked_scatter(places.unsqueeze(-1), features)

    def _positions(self, input_ids: torch.Tensor, images: ImageFeatures | None) -> tuple[torch.Tensor, int]:
        """Positions [3, 1, length] in time, height and width, and the offset of what follows."""
        if images is None:
            return torch.arange(input_ids.shape[1], device=self._device).view(1, 1, -1).expand(3, 1, -1), 0
        positions, delta = self._model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == self._processor.image_token_id).int(),
            image_grid_thw=images.grid.to(self._device),
        )
        return positions, int(delta)
