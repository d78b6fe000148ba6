"""Forward passes of one Qwen2.5-VL checkpoint: images, and reading in pieces, several readings at once.

A reading keeps its own keys and values and has explicit positions, since the model's ``rope_deltas`` are shared
mutable state (transformers 5.23). Nothing here knows prompts or verdicts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image

from guardtrace_proxy.auditor.checkpoint import Checkpoint
from guardtrace_proxy.auditor.packed import CACHE_ARGUMENT, PACKED, PackedCache
from guardtrace_proxy.auditor.processor import image_patches, image_tokens
from guardtrace_proxy.auditor.reading import GrowingLayer, Reading

PREFILL_TOKENS = 512
"""Tokens of one piece: between two passes a cancelled audit is noticed, and others get their turn."""


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


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that a reading is to take in one pass.

    ``embeddings`` [1, tokens, hidden], ``positions`` [3, 1, tokens]; the logits of the last ``keep`` are wanted.
    ``left`` counts the tokens from here to the end of what is to be read.
    """

    reading: Reading
    ids: Sequence[int]
    embeddings: torch.Tensor
    positions: torch.Tensor
    keep: int
    left: int


Steps = Generator[Piece, torch.Tensor, torch.Tensor]
"""Yields pieces and is sent the logits [keep, vocabulary] (float32) of each."""


class Inference:
    """The forward passes of one checkpoint. Not thread-safe: one worker uses it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tokens_read = 0
        """Text and image tokens of all passes."""
        self._model = checkpoint.model
        self._processor = checkpoint.processor
        self._device = checkpoint.device
        self._text_config = checkpoint.model.config.get_text_config()
        self._text_config._attn_implementation = PACKED

    def image_grid(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`guardtrace_proxy.auditor.processor.image_patches`."""
        return image_patches(self._processor, images)

    def token_counts(self, grid: torch.Tensor) -> list[int]:
        """For each image of ``grid`` how many tokens it takes in the prompt."""
        return image_tokens(self._processor, grid)

    @torch.inference_mode()
    def encode_images(self, pixels: torch.Tensor, grid: torch.Tensor) -> ImageFeatures:
        """Run the vision tower once; the result serves every audit of a session."""
        output = self._model.model.get_image_features(pixels.to(self._device), grid.to(self._device), return_dict=True)
        tokens = self.token_counts(grid)
        embeddings = torch.cat(list(output.pooler_output), dim=0)
        if embeddings.shape[0] != sum(tokens):
            raise RuntimeError(f"{embeddings.shape[0]} image features for {sum(tokens)} image tokens")
        return ImageFeatures(embeddings, grid, tokens)

    def begin(self) -> Reading:
        """A reading of nothing."""
        return Reading([GrowingLayer() for _ in range(self._text_config.num_hidden_layers)])

    def read(self, reading: Reading, ids: Sequence[int], images: ImageFeatures | None, keep: int) -> Steps:
        """Make the reading one of ``ids``: what it has in common with them, from the beginning, isn't read again.

        Returns:
            The logits of the last ``keep`` tokens.
        """
        reading.rewind(min(reading.common(ids), len(ids) - keep))
        self._rewind_half_images(reading, images)
        start = len(reading.ids)
        embeddings, positions = self._rest(reading, ids, images)
        rest = len(ids) - start
        at, logits = 0, torch.empty(0)
        for end in (*range(PREFILL_TOKENS, rest - keep + 1, PREFILL_TOKENS), rest):
            wanted = keep if end == rest else 0
            piece = ids[start + at : start + end]
            logits = yield Piece(reading, piece, embeddings[:, at:end], positions[..., at:end], wanted, rest - at)
            at = end
        return logits

    def extend(self, reading: Reading, ids: Sequence[int]) -> Steps:
        """Read on; the logits of all ``ids``."""
        embeddings, positions = self._plain(len(reading.ids) + reading.offset, ids)
        return (yield Piece(reading, ids, embeddings, positions, len(ids), len(ids)))

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """One pass over pieces of different readings; for each its logits [keep, vocabulary] (float32).

        Where it raises, the readings are as they were before.
        """
        lengths = [len(piece.ids) for piece in pieces]
        cache = PackedCache([piece.reading for piece in pieces], lengths, self._device)
        try:
            output = self._model.model.language_model(
                inputs_embeds=torch.cat([piece.embeddings for piece in pieces], dim=1),
                position_ids=torch.cat([piece.positions for piece in pieces], dim=2),
                attention_mask={"full_attention": None},  # packed_attention has its own
                **{CACHE_ARGUMENT: cache},
                use_cache=True,
            )
            rows = torch.split(output.last_hidden_state[0], lengths)
            wanted = [row[len(row) - piece.keep :] for row, piece in zip(rows, pieces, strict=True)]
            logits = cast(torch.Tensor, self._model.lm_head(torch.cat(wanted))).float()
        except BaseException:
            for piece in pieces:
                piece.reading.rewind(len(piece.reading.ids))
            raise
        for piece in pieces:
            piece.reading.ids += piece.ids
        self.tokens_read += sum(lengths)
        return list(torch.split(logits, [piece.keep for piece in pieces]))

    def _rest(
        self, reading: Reading, ids: Sequence[int], images: ImageFeatures | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [1, rest, hidden] and positions [3, 1, rest] in time, height and width of what isn't read yet."""
        start = len(reading.ids)
        image_id = self._processor.image_token_id
        expected = 0 if images is None else images.embeddings.shape[0]
        seen = reading.ids.count(image_id)
        if seen + ids[start:].count(image_id) != expected:
            raise RuntimeError(f"{seen} and {ids[start:].count(image_id)} image tokens for {expected} image features")
        if images is None or seen:
            return self._plain(start + reading.offset, ids[start:])
        input_ids = torch.tensor([list(ids)], device=self._device)
        places = input_ids == image_id
        positions, delta = self._model.model.get_rope_index(
            input_ids, mm_token_type_ids=places.int(), image_grid_thw=images.grid.to(self._device)
        )
        reading.offset = int(delta)
        embeddings = cast(torch.Tensor, self._model.get_input_embeddings()(input_ids[:, start:]))
        features = images.embeddings.to(embeddings.dtype)
        return embeddings.masked_scatter(places[:, start:].unsqueeze(-1), features), positions[:, :, start:]

    def _rewind_half_images(self, reading: Reading, images: ImageFeatures | None) -> None:
        """A cancelled audit may have read some of the images' tokens: all of them are read together."""
        if images is not None and 0 < reading.ids.count(self._processor.image_token_id) < images.embeddings.shape[0]:
            reading.rewind(reading.ids.index(self._processor.image_token_id))
            reading.offset = 0

    def _plain(self, position: int, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and positions of text from ``position`` on."""
        positions = torch.arange(position, position + len(ids), device=self._device).view(1, 1, -1).expand(3, 1, -1)
        input_ids = torch.tensor([list(ids)], device=self._device)
        return cast(torch.Tensor, self._model.get_input_embeddings()(input_ids)), positions
