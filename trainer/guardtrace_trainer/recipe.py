"""A recipe: everything from queries to an evaluated auditor, as one YAML file. Its sections are the steps'
own settings.

Paths of files and folders of data are relative to the recipe's file. ``folder`` is made where the command is run, and
``base``, ``launch`` and ``evaluation.policy`` are looked for from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from guardtrace_trainer.annotation.jury import Jury
from guardtrace_trainer.annotation.review import Reject
from guardtrace_trainer.corpus.generate import Models
from guardtrace_trainer.corpus.maker import Made
from guardtrace_trainer.corpus.paid import ImagesEndpoint
from guardtrace_trainer.corpus.reading import Format, Layout
from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.nano.plan import Nano
from guardtrace_trainer.prefixes.curriculum import Curriculum
from guardtrace_trainer.rows import Category
from guardtrace_trainer.settings import Settings
from guardtrace_trainer.stages.settings import DpoSettings, MineSettings, SftSettings


class Source(Settings):
    """``data import`` of one source. ``category_as`` maps the files' own names of categories to ours; with
    ``categories`` false none are read."""

    name: str
    files: list[Path] = Field(min_length=1)
    format: Format = "auto"
    text_field: str | None = None
    category_field: str | None = None
    category_as: dict[str, Category] = Field(default_factory=dict)
    categories: bool = True

    @property
    def layout(self) -> Layout:
        """Where the files' texts and categories stand."""
        return Layout(self.format, self.text_field, self.category_field, self.category_as, self.categories)


class Expand(Settings):
    """``data expand``. ``variants`` null: those that there is something to make from."""

    variants: list[Made] | None = None
    per_query: int = Field(4, ge=1)
    irrelevant_images: Path | None = None
    aligned_images: Path | None = None
    images_endpoint: ImagesEndpoint | None = None
    decompose_endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _aligned_once(self) -> Expand:
        if self.aligned_images is not None and self.images_endpoint is not None:
            raise ValueError("aligned_images and images_endpoint: give one of both")
        return self


class Corpus(Settings):
    """From queries to labelled traces. ``reviews`` are forms that experts filled; without any, the traces on which the
    whole jury differs are left out, and a form for them is written. A run ends where more than the share ``max_failed``
    of all questions, or of all traces before the jury, brought nothing that can be used."""

    sources: tuple[Source, ...] = ()
    hades: Path | None = None
    test_share: float = Field(0.2, ge=0, lt=1)
    expand: Expand = Expand()
    models: Models
    samples: int = Field(1, ge=1)
    jury: Jury
    reviews: tuple[Path, ...] = ()
    reject: Reject = "farthest"
    max_failed: float = Field(0.1, ge=0, le=1)


class Prefixes(Settings):
    """The prefix curriculum: ``judge`` finds onsets, and says in its own words what a beginning gives away."""

    judge: Endpoint
    curriculum: Curriculum = Curriculum()


class DataSet(Settings):
    """A set to evaluate on; of one that has halves perhaps a half."""

    path: Path
    half: Literal["dev", "test"] | None = None


class Evaluation(Settings):
    """What base and stages are evaluated on beside the corpus's own test split, each set apart. ``streaming`` are sets
    with onsets, on which the last stage is replayed, through the gate and under ``policy``. A trained stage without a
    single verdict ends the run, unless it ``may_be_mute``."""

    data: tuple[DataSet, ...] = ()
    streaming: tuple[DataSet, ...] = ()
    may_be_mute: bool = False
    policy: str = "balanced"
    annotate_max_tokens: int = Field(512, ge=16)
    concurrency: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _have_names(self) -> Evaluation:
        taken = {"data": {"corpus", "held-out", "controls", "prefixes", "streaming"}, "streaming": {"streams"}}
        for field, sets in (("data", self.data), ("streaming", self.streaming)):
            names = [each.path.name for each in sets]
            if len(set(names)) < len(names) or taken[field] & set(names):
                raise ValueError(f"{field}: folders need names of their own, by which the report calls them")
        return self


class Recipe(Settings):
    """``guardtrace-train run RECIPE``. ``base`` is a checkpoint, and ``corpus`` says where its queries come from; or
    ``nano`` makes both.

    ``launch`` is put before ``-m guardtrace_trainer STAGE …`` of each training stage, to run it on several devices:
    ``[accelerate, launch, --config_file, fsdp.yaml]``. Empty: this process trains.
    """

    version: Literal[1]
    folder: Path
    seed: int = 0
    base: str | None = None
    nano: Nano | None = None
    corpus: Corpus
    prefixes: Prefixes | None = None
    sft: SftSettings
    dpo: DpoSettings
    mine: MineSettings
    ogdpo: DpoSettings
    evaluation: Evaluation = Evaluation()
    launch: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Recipe:
        if (self.nano is None) == (self.base is None):
            raise ValueError("give base, or nano, which makes its own")
        sources = bool(self.corpus.sources) or self.corpus.hades is not None
        if sources != (self.nano is None):
            raise ValueError("corpus.sources: name files of queries; only nano makes its own, and takes no others")
        return self
