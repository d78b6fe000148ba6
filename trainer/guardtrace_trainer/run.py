"""``guardtrace-train run``: all steps of a recipe, one after the other.

Each step is passed over where it was done already and goes on where it was interrupted, so the same command finishes
what a crash left.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guardtrace_trainer.annotation import forms, review
from guardtrace_trainer.annotation.jury import annotate
from guardtrace_trainer.annotation.stratify import Pick, stratify_corpus
from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.corpus.expand import expand
from guardtrace_trainer.corpus.generate import Plan, generate
from guardtrace_trainer.corpus.hades import import_hades
from guardtrace_trainer.corpus.maker import Inputs
from guardtrace_trainer.corpus.queries import import_queries
from guardtrace_trainer.corpus.reading import Layout
from guardtrace_trainer.prefixes.curriculum import PAIR_PREFIXES, SFT_PREFIXES, make_prefixes
from guardtrace_trainer.prefixes.judges import EndpointJudge
from guardtrace_trainer.prefixes.onset import find_onsets
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.steps import StepError

Log = Callable[[str], None]
Stage = Literal["sft", "dpo", "ogdpo"]


@dataclass(frozen=True)
class Runner:
    """A recipe at work. ``file`` is the recipe's own, which its paths are relative to."""

    recipe: Recipe
    file: Path
    log: Log

    @property
    def corpus(self) -> Path:
        """The corpus's folder."""
        return self.recipe.folder / "corpus"

    def run(self) -> Path:
        """Everything; returns the report.

        Raises:
            RowError, StageError, StepError, AuditorError, EndpointFailure: with what to do.
        """
        from guardtrace_trainer.run_report import evaluate_run

        checkpoints = self.train()
        settings = self.recipe.evaluation
        data, streaming = ([self._path(path) for path in paths] for paths in (settings.data, settings.streaming))
        nano = self.recipe.nano
        if nano is not None:
            from guardtrace_trainer.nano import held_out

            folder = self.recipe.folder / "data"
            held_out.write(folder, count=nano.held_out)
            data = [folder / "held-out", folder / "prefixes", *data]
            streaming = [folder / "streams", *streaming]
        return evaluate_run(self.recipe, checkpoints, data, streaming, self.log)

    def train(self) -> dict[str, str | Path]:
        """Everything up to the last stage; returns the checkpoints by their stage, ``base`` first."""
        with self._asked():
            self.log("corpus")
            self._label()
            base = self._base()
            sft = self._train("sft", base, self._sft_rows())
            dpo = self._train("dpo", sft, self._pairs())
            checkpoints = {"base": base, "sft": sft, "dpo": dpo}
            mined = self._mine(dpo)
            if mined:
                return {**checkpoints, "ogdpo": self._train("ogdpo", dpo, mined)}
        self.log("ogdpo: nothing was mined and no expert voted, so the DPO model is the last one")
        return checkpoints

    def _asked(self) -> contextlib.AbstractContextManager[None]:
        """The small recipe's scripted models are served while they may be asked."""
        nano = self.recipe.nano
        if nano is None:
            return contextlib.nullcontext()
        from guardtrace_trainer.nano import expansion, serving

        expansion.expand(self.corpus, count=nano.requests, seed=self.recipe.seed)
        return serving.parties(self.corpus, seed=self.recipe.seed, port=nano.port)

    def _label(self) -> None:
        """From queries to sft.jsonl, pairs.jsonl and expert_pairs.jsonl, and with the curriculum their beginnings."""
        settings, corpus, seed = self.recipe.corpus, self.corpus, self.recipe.seed
        if self.recipe.nano is None:
            self._requests()
        self.log("corpus: traces of thinking models")
        generate(corpus, Plan(settings.models, settings.samples))
        self.log("corpus: the jury")
        annotate(corpus, settings.jury, base=self.file.parent)
        stratify_corpus(corpus, Pick(seed, settings.jury.priority))
        self._review()
        prefixes = self.recipe.prefixes
        if prefixes is None:
            return
        self.log("corpus: onsets and beginnings")
        judge = EndpointJudge(prefixes.judge)
        find_onsets(corpus, judge, concurrency=prefixes.judge.concurrency)
        make_prefixes(corpus, prefixes.curriculum, judge, concurrency=prefixes.judge.concurrency)

    def _requests(self) -> None:
        settings, corpus = self.recipe.corpus, self.corpus
        for source in settings.sources:
            files = [self._path(file) for file in source.files]
            layout = Layout(format=source.format)
            import_queries(files, corpus, source.name, layout, test_share=settings.test_share, seed=self.recipe.seed)
        if settings.hades is not None:
            import_hades(self._path(settings.hades), corpus, test_share=settings.test_share, seed=self.recipe.seed)
        given = settings.expand
        aligned = given.images_endpoint or (given.aligned_images and self._path(given.aligned_images))
        irrelevant = None if given.irrelevant_images is None else self._path(given.irrelevant_images)
        inputs = Inputs(irrelevant=irrelevant, aligned=aligned, decompose=given.decompose_endpoint)
        expand(corpus, inputs, variants=given.variants, per_query=given.per_query, seed=self.recipe.seed)

    def _review(self) -> None:
        """Experts' votes on what the whole jury differs about; without any, a form to be filled is written."""
        settings, corpus = self.recipe.corpus, self.corpus
        if self.recipe.nano is not None:
            from guardtrace_trainer.nano import experts

            experts.vote(corpus, self.recipe.seed)
        elif settings.reviews:
            files = [self._path(file) for file in settings.reviews]
            items = review.read_items(corpus)
            review.keep_reviews(corpus, forms.read_forms(files, items, review.read_reviews(corpus)))
        pick = Pick(self.recipe.seed, settings.jury.priority)
        tally, _ = review.decide(corpus, reject=settings.reject, pick=pick)
        if tally.waiting:
            waiting = set(tally.waiting)
            form = self.recipe.folder / "review.csv"
            forms.write_form(form, [item for item in review.read_items(corpus) if item.id in waiting])
            self.log(f"corpus: {len(waiting)} traces wait for experts: fill {form}, then name it in corpus.reviews")

    def _base(self) -> str | Path:
        nano = self.recipe.nano
        if nano is None:
            assert self.recipe.base is not None
            return self.recipe.base
        from guardtrace_trainer.nano.base import make_base

        return make_base(self.recipe.folder / "base", nano.warm_up, self.recipe.seed, self.log)

    def _sft_rows(self) -> list[Path]:
        return self._rows("sft.jsonl", *([SFT_PREFIXES] if self.recipe.prefixes else []))

    def _pairs(self) -> list[Path]:
        return self._rows("pairs.jsonl", *([PAIR_PREFIXES] if self.recipe.prefixes else []))

    def _rows(self, *names: str) -> list[Path]:
        """Those of the corpus's files that hold rows."""
        return [path for path in (self.corpus / name for name in names) if path.is_file() and path.stat().st_size]

    def _mine(self, dpo: Path) -> list[Path]:
        from guardtrace_trainer.stages.mine import run_mine

        out = self.recipe.folder / "mined"
        data = self.corpus / "pairs.jsonl"
        mined = run_mine(self.recipe.mine, base=str(dpo), data=data, out=out, seed=self.recipe.seed, log=self.log)
        experts = self._rows(review.PAIRS)
        return [*([mined] if mined.stat().st_size else []), *experts]

    def _train(self, stage: Stage, base: str | Path, data: Sequence[Path]) -> Path:
        if not data:
            raise StepError(f"{stage}: there is nothing to train on; see the counts in {self.corpus}/*.manifest.json")
        out = self.recipe.folder / stage
        if self.recipe.launch:
            self._launch(stage, base, data, out)
            return out
        from guardtrace_trainer.stages.dpo import run_dpo, run_ogdpo
        from guardtrace_trainer.stages.sft import run_sft

        settings: Any = getattr(self.recipe, stage)
        functions: dict[str, Callable[..., Path]] = {"sft": run_sft, "dpo": run_dpo, "ogdpo": run_ogdpo}
        self.log(stage)
        return functions[stage](
            settings,
            base=str(base),
            data=data,
            out=out,
            seed=self.recipe.seed,
            log=self.log,
            corpus=self.corpus,
        )

    def _launch(self, stage: Stage, base: str | Path, data: Sequence[Path], out: Path) -> None:
        """Train in processes of their own."""
        files = [part for path in data for part in ("--data", str(path))]
        options = ["--base", str(base), *files, "--out", str(out), "--corpus", str(self.corpus)]
        program, *arguments = self.recipe.launch
        command = [_program(program), *arguments, "-m", "guardtrace_trainer", stage]
        command += ["--recipe", str(self.file), "--seed", str(self.recipe.seed), *options]
        self.log(f"{stage}: {' '.join(command)}")
        finished = subprocess.run(command, check=False, preexec_fn=die_with_parent)  # noqa: S603
        if finished.returncode:
            raise StepError(f"{stage} ended with status {finished.returncode}; its own message stands above")

    def _path(self, path: Path) -> Path:
        return self.file.parent / path


def _program(name: str) -> str:
    """The one that is installed beside this Python, else the one on the path.

    Raises:
        StepError: there is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StepError(f"launch: there is no program {name}")
    return found
