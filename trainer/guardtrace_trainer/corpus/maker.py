"""Makes the requests' images, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from guardtrace_trainer.corpus import csdj, figstep
from guardtrace_trainer.corpus.paid import Aligned, ImagesEndpoint, Parts, aligned_images, three_parts
from guardtrace_trainer.corpus.pictures import IMAGES, folder_pictures, read_picture, save_picture
from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.rows import Query, Row
from guardtrace_trainer.steps import StepError, file_hash

Made = Literal["text", "irrelevant", "aligned", "figstep", "csdj"]
VARIANTS: tuple[Made, ...] = get_args(Made)


@dataclass(frozen=True)
class Inputs:
    """What variants are made from. ``aligned`` is a folder of images named by query id, or a model that draws."""

    irrelevant: Path | None = None
    aligned: Path | ImagesEndpoint | None = None
    decompose: Endpoint | None = None
    font: Path | None = None

    def possible(self) -> list[Made]:
        """The paper's four, as far as there is something to make them from."""
        have = {"irrelevant": self.irrelevant is not None, "aligned": self.aligned is not None, "csdj": False}
        return [variant for variant in VARIANTS if have.get(variant, True)]

    def pool(self) -> list[Path]:
        """The irrelevant images, by name."""
        return [] if self.irrelevant is None else folder_pictures(self.irrelevant, "--irrelevant-images")

    def prepared(self) -> dict[str, Path]:
        """The prepared aligned images by query id."""
        if not isinstance(self.aligned, Path):
            return {}
        return {path.stem: path for path in folder_pictures(self.aligned, "--aligned-images")}


class Drawn(Row, frozen=True, kw_only=True):
    """A request (``id``) whose image stands, or that can't be made: the journal of an interrupted step."""

    image: str | None = None
    sha256: str | None = None
    question: str = ""
    why: str | None = None


class Maker:
    """Makes the images of requests, one at a time."""

    def __init__(self, corpus: Path, inputs: Inputs, seed: int) -> None:
        self.corpus = corpus
        self.inputs = inputs
        self.seed = seed
        self._aligned: dict[str, Aligned] = {}
        self._parts: dict[str, Parts] = {}
        self._irrelevant_drawn: dict[Path, Drawn] = {}
        self._pool = inputs.pool()
        self._prepared = inputs.prepared()

    def pay(self, queries: Sequence[Query], variant: Made, progress: Callable[[str, int], Callable[[], None]]) -> None:
        """Ask models for what ``queries`` still lack."""
        if not queries:
            return
        if variant == "aligned" and isinstance(self.inputs.aligned, ImagesEndpoint):
            came = progress("aligned images", len(queries))
            self._aligned = aligned_images(queries, self.inputs.aligned, self.corpus, came)
        if variant == "aligned" and isinstance(self.inputs.aligned, Path):
            self._check_prepared(queries)
        if variant == "csdj" and self.inputs.decompose is not None:
            came = progress("sub-questions", len(queries))
            self._parts = three_parts(queries, self.inputs.decompose, self.corpus, came)

    def make(self, query: Query, variant: Made, id: str) -> Drawn:
        """One request's image and question, or why it can't be made."""
        try:
            if variant == "text":
                return Drawn(id=id, question=query.text)
            if variant == "irrelevant":
                return self._irrelevant(query, id)
            if variant == "aligned":
                return self._aligned_one(query, id)
            if variant == "figstep":
                pixels = figstep.draw(figstep.title(query.text), self.inputs.font)
                return self._saved(pixels, f"figstep/{query.id}", id, figstep.QUESTION)
            return self._csdj(query, id)
        except figstep.Undrawable as error:
            return Drawn(id=id, why=str(error))

    def _irrelevant(self, query: Query, id: str) -> Drawn:
        source = self._rng(query, "irrelevant").choice(self._pool)
        drawn = self._irrelevant_drawn.get(source)
        if drawn is None:
            drawn = self._saved(read_picture(source), f"irrelevant/{file_hash(source)[:16]}", id, query.text)
            self._irrelevant_drawn[source] = drawn
        return Drawn(id=id, image=drawn.image, sha256=drawn.sha256, question=query.text)

    def _aligned_one(self, query: Query, id: str) -> Drawn:
        if isinstance(self.inputs.aligned, Path):
            pixels = read_picture(self._prepared[query.id])
            return self._saved(pixels, f"prepared/{query.id}", id, query.text)
        entry = self._aligned[query.id]
        return Drawn(id=id, image=entry.image, sha256=entry.sha256, question=query.text, why=entry.refusal)

    def _csdj(self, query: Query, id: str) -> Drawn:
        if self.inputs.decompose is not None:
            entry = self._parts[query.id]
            parts, question, why = entry.parts, csdj.QUESTION, entry.refusal
        else:
            parts, question, why = csdj.three_runs(query.text), csdj.QUESTION_OF_RUNS, "fewer than three words"
        if parts is None:
            return Drawn(id=id, why=why or "no parts")
        rng = self._rng(query, "csdj")
        distractions = [_tile(path) for path in rng.sample(self._pool, csdj.DISTRACTIONS)]
        return self._saved(csdj.draw(parts, distractions, rng, self.inputs.font), f"csdj/{query.id}", id, question)

    def _saved(self, pixels: Image.Image, name: str, id: str, question: str) -> Drawn:
        image = f"{IMAGES}/{name}.png"
        return Drawn(id=id, image=image, sha256=save_picture(pixels, self.corpus / image), question=question)

    def _check_prepared(self, queries: Sequence[Query]) -> None:
        lacking = [query.id for query in queries if query.id not in self._prepared]
        if lacking:
            raise StepError(
                f"--aligned-images {self.inputs.aligned}: {len(lacking)} of {len(queries)} queries have no image "
                f"there, the first is {lacking[0]}; expected {lacking[0]}.png (or .jpg, .webp) for each"
            )

    def _rng(self, query: Query, use: str) -> random.Random:
        return random.Random(f"{self.seed}/{use}/{query.id}")


@lru_cache(maxsize=256)
def _tile(path: Path) -> Image.Image:
    return csdj.tile(read_picture(path))
