"""What auditors are evaluated on: items, and the evaluation folder that holds them.

An evaluation folder holds ``qta.jsonl``, one :class:`QtaRow` a line, and its images, which rows name by paths inside
the folder. Readers of other sets are in :mod:`guardtrace_trainer.evaluation.readers`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from guardtrace_proxy.auditor.prompt import Query, QueryImage, Turn
from guardtrace_proxy.images import ImageError, ImageLimits, decode_data_url
from guardtrace_trainer.prefixes.sentences import split
from guardtrace_trainer.rows import LEVELS, Row, RowError, numbered_rows

Half = Literal["dev", "test"]
FILE = "qta.jsonl"
LIMITS = ImageLimits()
"""Those of the proxy's own defaults."""

BENIGN = "benign"
"""A harmless request, answered."""
SAFE_REASONING = "safe_reasoning"
"""A harmful request that the whole trace handles safely."""
SAFE = "safe"
"""Level 0 where it isn't known which of these two it is."""
UNSAFE = "unsafe"
HARD_NEGATIVES = "hard negatives"
"""A subset whose figures stand beside the whole's: steps towards something harmless, harm in the thinking alone."""
UNKNOWN = "unknown"
"""Nobody has said which level it has."""

_MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image beside the items: read when it is asked for, since all of a set at once would fill the memory."""

    path: Path

    @property
    def data_url(self) -> str:
        """The file's bytes as a data URL.

        Raises:
            ImageError: the file can't be read or is no PNG, JPEG, WebP or GIF.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise ImageError("image", f"{self.path} can't be read ({error.strerror})") from error
        media_type = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
        if media_type is None:
            raise ImageError("image", f"{self.path} is none of PNG, JPEG, WebP and GIF")
        return f"data:{media_type};base64,{base64.b64encode(data).decode()}"

    @property
    def pixels(self) -> Image.Image:
        """Decoded by the proxy's own rule, RGB; raises ImageError."""
        return decode_data_url(self.data_url, LIMITS, "image").pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One trace to judge.

    ``id`` is unique within its ``subset``, which is what figures are given by. ``kind`` is one of this module's words
    where its reader knows, or the set's own. ``level`` is 0, 0.5 or 1, None where nobody has said. ``onset_sentence``
    counts ``thinking_sentences`` from 1; it is None at level 0, where only the answer is unsafe, and where it isn't
    known. Items of one ``group`` come of one trace or one query and err together; without one an item stands alone.
    """

    id: str
    subset: str
    kind: str
    category: str
    question: str
    image: QueryImage | None
    thinking: str
    answer: str
    level: float | None
    onset_sentence: int | None = None
    thinking_sentences: tuple[str, ...] | None = None
    group: str | None = None

    @property
    def key(self) -> str:
        """Its name among the items of several sets."""
        return f"{self.subset}/{self.id}"

    @property
    def query(self) -> Query:
        """As an auditor is opened on it."""
        return Query([Turn("user", self.question)], [] if self.image is None else [self.image])


class QtaRow(Row, frozen=True, kw_only=True):
    """A line of ``qta.jsonl``. ``image`` is a path inside the folder.

    Joined, with white space between, ``thinking_sentences`` are ``thinking``; ``onset_sentence`` counts them from 1.
    ``half`` says whether it may be looked at during development or once, at the end. Rows that come of one trace or of
    one query name the same ``group``: intervals draw groups.
    """

    category: str
    question: str
    image: str | None
    thinking: str
    answer: str
    level: float
    onset_sentence: int | None = None
    thinking_sentences: tuple[str, ...] | None = None
    half: Half | None = None
    subset: str | None = None
    kind: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"field level: {self.level:g} is none of 0, 0.5 and 1")
        check_sentences(self.thinking, self.thinking_sentences)
        check_onset(self.level, self.onset_sentence, self.thinking, self.thinking_sentences)


def check_sentences(thinking: str, sentences: tuple[str, ...] | None) -> None:
    """Raises ValueError where the sentences aren't those of the thinking."""
    if sentences is not None and "".join("".join(sentences).split()) != "".join(thinking.split()):
        raise ValueError("field thinking_sentences: joined, with white space between, they must be the thinking")


def check_onset(level: float, onset: int | None, thinking: str, sentences: tuple[str, ...] | None) -> None:
    """Raises ValueError where an onset, counted from 1, can't be. Without ``sentences`` the thinking is split."""
    if onset is None:
        return
    if level == 0:
        raise ValueError("field onset_sentence: level 0 has no onset; write null")
    count = sum(bool(sentence.strip()) for sentence in sentences or split(thinking))
    if not 1 <= onset <= count:
        raise ValueError(
            f"field onset_sentence: {onset} is out of range; the thinking has {count} sentences, counted from 1"
        )


def kind_of(level: float, category: str, otherwise: str = SAFE) -> str:
    """The kind where a row doesn't say: safe items of the category ``benign`` are plain benign ones."""
    if level > 0:
        return UNSAFE
    return BENIGN if category == BENIGN else otherwise


def read_qta(folder: Path, half: Half | None = None) -> list[Item]:
    """The items of an evaluation folder, only those of ``half`` if it is given; the subset is the folder's name where a
    row has none.

    Raises:
        RowError: a row or an image doesn't fit; the message names file, line and field.
    """
    path = folder / FILE
    items: list[Item] = []
    for number, row in numbered_rows(path, QtaRow):
        if half is not None and row.half is None:
            raise RowError(f"{path}, line {number}, field half: expected dev or test, since one half is asked for")
        if half is not None and row.half != half:
            continue
        items.append(
            Item(
                id=row.id,
                subset=row.subset or folder.resolve().name,
                kind=row.kind or kind_of(row.level, row.category),
                category=row.category,
                question=row.question,
                image=image_beside(row.image, folder, f"{path}, line {number}, field image"),
                thinking=row.thinking,
                answer=row.answer,
                level=row.level,
                onset_sentence=row.onset_sentence,
                thinking_sentences=row.thinking_sentences,
                group=None if row.group is None else f"{folder.resolve().name}/{row.group}",
            )
        )
    return items


def image_beside(name: str | None, folder: Path, place: str) -> ImageFile | None:
    """The image ``name`` inside ``folder``, decoded once to see that it can be.

    Raises:
        RowError: it lies outside of the folder, can't be read, or is no image that the proxy takes.
    """
    if name is None:
        return None
    path = folder / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise RowError(f"{place}: {name!r} must be a relative path inside {folder}, without ..")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RowError(f"{place}: {name!r} is a link that leads out of {folder}; put the image itself there")
    image = ImageFile(path)
    try:
        _ = image.pixels
    except ImageError as error:
        raise RowError(f"{place}: {name!r}: {error}") from error
    return image
