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

from guardtrace_trainer.again import Part, begin_again, end_again
from guardtrace_trainer.annotation import forms, review
from guardtrace_trainer.annotation.jury import FAILED as FAILED_VOTES
from guardtrace_trainer.annotation.jury import annotate
from guardtrace_trainer.annotation.prompts import system_prompt
from guardtrace_trainer.annotation.stratify import Pick, stratify_corpus
from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.corpus.expand import expand
from guardtrace_trainer.corpus.generate import FAILED as FAILED_TRACES
from guardtrace_trainer.corpus.generate import Plan, generate
from guardtrace_trainer.corpus.hades import import_hades
from guardtrace_trainer.corpus.maker import Inputs
from guardtrace_trainer.corpus.queries import import_queries, keep_only
from guardtrace_trainer.prefixes.curriculum import PAIR_PREFIXES, SFT_PREFIXES, make_prefixes
from guardtrace_trainer.prefixes.judges import EndpointJudge
from guardtrace_trainer.prefixes.onset import find_onsets
from guardtrace_trainer.recipe import DataSet, Recipe
from guardtrace_trainer.steps import StepError, is_begun

Log = Callable[[str], None]
Stage = Literal["sft", "dpo", "ogdpo"]


@dataclass(frozen=True)
class Runner:
    """A recipe at work. ``file`` is the recipe's own, which its paths are relative to.

    ``again_from``: this part and those after it are begun anew, as after a change of their settings or inputs; what
    models were paid for is kept. Where that was interrupted before it goes on.
    """

    recipe: Recipe
    file: Path
    log: Log
    again_from: Part | None = None

    @property
    def corpus(self) -> Path:
        """The corpus's folder."""
        return self.recipe.folder / "corpus"

    def run(self) -> Path:
        """Everything; returns the report.

        Raises:
            RowError, SettingsError, StageError, StepError, AuditorError, EndpointFailure: with what to do.
        """
        from guardtrace_trainer.evaluation.readers import corpus_tests
        from guardtrace_trainer.run_report import check_inputs, evaluate_run

        settings = self.recipe.evaluation
        data, streaming = ([self._data(each) for each in sets] for sets in (settings.data, settings.streaming))
        check_inputs(self.recipe, data, streaming)
        if self.again_from is not None:
            begin_again(self.recipe, self.again_from, self.log)
        checkpoints = self.train()
        nano = self.recipe.nano
        if nano is not None:
            from guardtrace_trainer.nano import held_out

            folder = self.recipe.folder / "data"
            held_out.write(folder, count=nano.held_out)
            data = [*(DataSet(path=folder / name) for name in ("held-out", "controls", "prefixes")), *data]
            streaming = [DataSet(path=folder / "streams"), *streaming]
        if any(path.stat().st_size for path in corpus_tests(self.corpus)):
            data = [DataSet(path=self.corpus), *data]
        report = evaluate_run(self.recipe, checkpoints, data, streaming, self.log)
        end_again(self.recipe)
        return report

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

        share = nano.telling_harmless
        expansion.expand(self.corpus, count=nano.requests, seed=self.recipe.seed, telling_harmless=share)
        return serving.parties(self.corpus, seed=self.recipe.seed, port=nano.port)

    def _label(self) -> None:
        """From queries to sft.jsonl, pairs.jsonl and expert_pairs.jsonl, and with the curriculum their beginnings."""
        settings, corpus, seed = self.recipe.corpus, self.corpus, self.recipe.seed
        if self.recipe.nano is None:
            self._requests()
        self.log("corpus: traces of thinking models")
        models = settings.models.model_copy(update={"seed": settings.models.seed + seed})
        kept = self._has("annotate")
        made = generate(corpus, Plan(models, settings.samples), keep_failures=kept).counts
        self._enough("generate", made["failed"], made["questions"], FAILED_TRACES, kept)
        self.log("corpus: the jury")
        kept = self._has("stratify")
        made = annotate(corpus, settings.jury, base=self.file.parent, keep_failures=kept).counts
        unheard = made["traces"] - made["votes"] - sum(made["screened"].values())
        self._enough("annotate", unheard, made["traces"], FAILED_VOTES, kept)
        stratify_corpus(corpus, Pick(seed, settings.jury.priority))
        self._review()
        prefixes = self.recipe.prefixes
        if prefixes is None:
            return
        self.log("corpus: onsets and beginnings")
        prompt = settings.jury.system_prompt
        judge = EndpointJudge(prefixes.judge, system_prompt(None if prompt is None else self._path(prompt)))
        at_once = prefixes.judge.concurrency
        curriculum = prefixes.curriculum.model_copy(update={"seed": prefixes.curriculum.seed + seed})
        find_onsets(corpus, judge, concurrency=at_once)
        make_prefixes(corpus, curriculum, judge, concurrency=at_once)

    def _has(self, step: str) -> bool:
        """Whether a step was begun: then what failed in the one before isn't asked again, since that would change its
        inputs."""
        return is_begun(self.corpus / f"{step}.manifest.json")

    def _enough(self, step: str, failed: int, of: int, file: str, kept: bool) -> None:
        """Whether a step may be gone on from. ``kept``: its failures weren't asked again.

        Raises:
            StepError: too much of it failed.
        """
        most = self.recipe.corpus.max_failed
        if failed <= most * of:
            return
        again = "with --again-from corpus" if kept else "again"
        raise StepError(
            f"{step}: {failed} of {of} failed, more than corpus.max_failed, {most:g}; {self.corpus / file} says why. "
            f"Mend it and run it {again}: only what failed is asked for"
        )

    def _requests(self) -> None:
        settings, corpus = self.recipe.corpus, self.corpus
        named = [source.name for source in settings.sources] + ([] if settings.hades is None else ["hades"])
        keep_only(corpus, named, again=self.again_from == "corpus")
        split: Any = {"test_share": settings.test_share, "seed": self.recipe.seed}
        for source in settings.sources:
            files = [self._path(file) for file in source.files]
            import_queries(files, corpus, source.name, source.layout, **split)
        if settings.hades is not None:
            import_hades(self._path(settings.hades), corpus, **split)
        given = settings.expand
        aligned = given.images_endpoint or (given.aligned_images and self._path(given.aligned_images))
        irrelevant = None if given.irrelevant_images is None else self._path(given.irrelevant_images)
        inputs = Inputs(irrelevant=irrelevant, aligned=aligned, decompose=given.decompose_endpoint)
        every: Any = {"variants": given.variants, "per_query": given.per_query, "seed": self.recipe.seed}
        expand(corpus, inputs, **every)

    def _review(self) -> None:
        """Experts' votes on what the whole jury differs about; without any, a form to be filled is written."""
        settings, corpus = self.recipe.corpus, self.corpus
        if self.recipe.nano is not None:
            from guardtrace_trainer.nano import experts

            experts.vote(corpus, self.recipe.seed)
        else:
            files = [self._path(file) for file in settings.reviews]
            review.take_copies(corpus, forms.read_forms(files, review.read_items(corpus), []))
        tally, _ = review.decide(corpus, reject=settings.reject, pick=Pick(self.recipe.seed))
        if tally.waiting:
            form = self.recipe.folder / "review.csv"
            kept = forms.renew_form(form, review.read_items(corpus), set(tally.waiting))
            if kept is not None:
                self.log(f"corpus: {form} was of other traces and is written anew; what was filled in is in {kept}")
            self.log(
                f"corpus: {len(tally.waiting)} traces wait for experts: have each of them fill a copy of {form}, name "
                "the copies in corpus.reviews, and run it again with --again-from ogdpo"
            )

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
        return _filled(*(self.corpus / name for name in names))

    def _mine(self, dpo: Path) -> list[Path]:
        from guardtrace_trainer.stages.mine import run_mine

        mined = run_mine(
            self.recipe.mine,
            base=str(dpo),
            data=self._pairs(),
            out=self.recipe.folder / "mined",
            seed=self.recipe.seed,
            log=self.log,
            corpus=self.corpus,
        )
        experts = self._rows(review.PAIRS)
        return [*_filled(mined), *experts, *_filled(mined.with_name("replay.jsonl"))]

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

    def _data(self, data: DataSet) -> DataSet:
        return data.model_copy(update={"path": self._path(data.path)})


def _filled(*paths: Path) -> list[Path]:
    return [path for path in paths if path.is_file() and path.stat().st_size]


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
