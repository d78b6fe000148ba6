"""Qwen2.5-VL's processor for images and text alone.

The stock class insists on a video processor, which needs torchvision; without it ``AutoProcessor`` returns a
bare tokenizer, silently, or raises (transformers 5.23). So folders are loaded through one class of ours, with
torchvision and without, always on the PIL pixel path: the same bytes give the same patches in training and in
serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from guardtrace_proxy.auditor.foreign import refuse_foreign
from guardtrace_proxy.images.fitting import MAX_PIXELS


class ImageOnlyProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc, unused-ignore]
    """``Qwen2_5_VLProcessor`` without video: reads and writes the same folders."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call, unused-ignore]


def load_processor(source: str, *, local_files_only: bool = False) -> ImageOnlyProcessor:
    """The processor of a checkpoint folder or hub id, in today's or the published folder layout.

    Raises:
        OSError: ``source`` lacks a file, or can't be reached.
        ValueError: it names code or files that aren't its own.
        TypeError: what came back isn't a processor with tokenizer, image processor and chat template.
    """
    refuse_foreign(source)
    processor = ImageOnlyProcessor.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
    if not isinstance(processor, ImageOnlyProcessor):
        raise TypeError(f"expected a Qwen2.5-VL processor, got a {type(processor).__name__}")
    if not isinstance(processor.tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"expected a tokenizer, got a {type(processor.tokenizer).__name__}")
    if not processor.chat_template:
        raise TypeError("there is no chat template (chat_template.jinja or chat_template.json)")
    processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(source, local_files_only=local_files_only)
    return processor


def image_patches(processor: ImageOnlyProcessor, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [n, channels x patch pixels] and grid [images, 3], in time, height and width.

    Images are made smaller to the processor's own pixel budget, or to what a remote auditor gets where that is
    less: Qwen2.5-VL's own may make more tokens of one photograph than the context takes.

    Raises:
        ValueError: an image is more than 200 times as long as wide.
    """
    own = processor.image_processor
    most = min(own.size["longest_edge"], MAX_PIXELS)
    size = {"shortest_edge": min(own.size["shortest_edge"], most), "longest_edge": most}
    features = own(images=list(images), size=size, return_tensors="pt")
    return features["pixel_values"], features["image_grid_thw"]


def image_tokens(processor: ImageOnlyProcessor, grid: torch.Tensor) -> list[int]:
    """For each image of ``grid`` how many tokens it takes in the prompt."""
    merge = processor.image_processor.merge_size
    return [int(count) // merge**2 for count in grid.prod(-1)]
