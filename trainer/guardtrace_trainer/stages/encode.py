"""A row's tokens, made by the auditor's own functions: what is trained is what is served, token for token.

TRL's own tokenisation isn't used: to it ``<|im_end|>`` in a trace is a control token, to the auditor it is ten
characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, GenerationConfig

from guardtrace_proxy.auditor.checkpoint import end_ids, own_settings
from guardtrace_proxy.auditor.labels import LabelTokens
from guardtrace_proxy.auditor.layout import Layout
from guardtrace_proxy.auditor.processor import image_patches, image_tokens, load_processor
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Turn, query_text, user_text
from guardtrace_proxy.images import Budget, ImageError, ImageLimits, decode_image
from guardtrace_proxy.images.fitting import MAX_STRETCH, is_too_stretched
from guardtrace_trainer.endpoints import MIME
from guardtrace_trainer.rows import Annotation, Trace
from guardtrace_trainer.stages.settings import StageError


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows a prompt: ``given`` of its ids are given, the others are learned."""

    ids: list[int]
    given: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the tails behind it: one for SFT, chosen and rejected for DPO.

    ``prompt`` ends where the assistant's turn goes on. ``patches`` are the image's, by its grid [1, 3].
    """

    id: str
    prompt: list[int]
    tails: tuple[Tail, ...]
    image: Path | None = None
    grid: tuple[int, int, int] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest sequence, with the image's."""
        return len(self.prompt) + max(len(tail.ids) for tail in self.tails)


class Encoder:
    """Encodes rows for one checkpoint folder.

    Raises:
        StageError: the chat template or the tokenizer doesn't fit the auditor's prompt.
    """

    def __init__(self, folder: Path, system_prompt: str | None = None) -> None:
        self.processor = load_processor(str(folder), local_files_only=True)
        self.layout = Layout(self.processor)
        self.labels = LabelTokens.of(self.layout)
        self.system_prompt = system_prompt or own_settings(str(folder)).get("system_prompt") or SYSTEM_PROMPT
        self.turn = self.layout.opening("")
        self.end = self._end(folder)
        self._grids: dict[Path, torch.Tensor] = {}

    def _end(self, folder: Path) -> int:
        """The token that the chat template puts behind the assistant's turn; it must end a reply in serving, too."""
        end = self.layout.end_of_turn()
        generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
        known = end_ids(generation, AutoConfig.from_pretrained(folder), self.processor)
        if end not in known:
            raise StageError(
                f"the chat template ends a turn with the token {end}, but the checkpoint's replies end with "
                f"{sorted(known)}: put {end} into eos_token_id of generation_config.json"
            )
        return end

    def prompt(self, row: Trace, corpus: Path) -> Example:
        """The prompt of a row, without tails; its image is read from the corpus's folder.

        Raises:
            StageError: the image can't be read, or the network doesn't take it.
        """
        image: Path | None = None
        grid: tuple[int, int, int] | None = None
        counts: list[int] = []
        if row.image is not None:
            image = corpus / row.image
            shape = self._grids.get(image)
            if shape is None:
                try:
                    shape = self._grids[image] = self._seen(image)[1]
                except StageError as error:
                    raise StageError(f"row {row.id}, field image: {error}") from error
            grid, counts = (int(shape[0, 0]), int(shape[0, 1]), int(shape[0, 2])), image_tokens(self.processor, shape)
        text = user_text(query_text([Turn("user", row.question)]), row.thinking, row.answer)
        return Example(row.id, self.layout.prompt(self.system_prompt, text, counts), (), image, grid)

    def reply(self, annotation: Annotation) -> Tail:
        """The whole annotation, all of it learned; without an analysis it is the judgment alone, as :meth:`bare`."""
        if not annotation.analysis:
            return self.bare(annotation)
        return self._tail(annotation.text, len(self.turn))

    def bare(self, annotation: Annotation) -> Tail:
        """The judgment alone. Its beginning is given, as a label read gives it; the label and the end are learned."""
        return self._tail(annotation.bare, len(self.labels.opening))

    def _tail(self, text: str, given: int) -> Tail:
        ids = self.layout.opening(text)
        if ids[: len(self.turn)] != self.turn:
            raise StageError("the tokenizer joins the beginning of the assistant's turn with what follows it")
        return Tail([*ids[len(self.turn) :], self.end], given - len(self.turn))

    def patches(self, image: Path) -> torch.Tensor:
        """Patches [n, channels x patch pixels] of one image."""
        return self._seen(image)[0]

    def _seen(self, image: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and grid of one image."""
        pixels = read_image(image)
        if is_too_stretched(*pixels.size):
            raise StageError(f"{image}: is more than {MAX_STRETCH} times as long as wide; take the row out")
        return image_patches(self.processor, [pixels])


def read_image(path: Path) -> Image.Image:
    """An image by the proxy's own decode rule.

    Raises:
        StageError: it isn't there, isn't one, or is over the limits.
    """
    kind = MIME.get(path.suffix.lower())
    if kind is None:
        raise StageError(f"{path}: expected one of {', '.join(MIME)}")
    try:
        return decode_image(path.read_bytes(), kind, Budget(ImageLimits()), str(path))
    except OSError as error:
        raise StageError(f"{path}: can't be read ({error.strerror})") from error
    except ImageError as error:
        raise StageError(f"{path}: {error}") from error
