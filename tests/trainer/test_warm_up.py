"""A seed gives the same base, also when it went on from kept parts, and the proxy loads the exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from guardtrace_proxy.auditor import make_auditor  # noqa: E402
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn  # noqa: E402
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind  # noqa: E402
from guardtrace_trainer.nano import halfway  # noqa: E402
from guardtrace_trainer.nano import warm_up as warming  # noqa: E402
from guardtrace_trainer.nano.corpus import SYSTEM_PROMPT  # noqa: E402
from guardtrace_trainer.nano.export import export  # noqa: E402
from guardtrace_trainer.nano.model import MAX_CONTEXT  # noqa: E402
from guardtrace_trainer.nano.plan import WarmUp  # noqa: E402
from guardtrace_trainer.nano.trainee import Trainee  # noqa: E402
from guardtrace_trainer.nano.vocabulary import read_embeddings  # noqa: E402
from guardtrace_trainer.nano.warm_up import _schedule as schedule  # noqa: E402
from guardtrace_trainer.nano.warm_up import warm_up  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")

PLAN = WarmUp(vision_steps=2, vision_batch=4, nearby_steps=2, language_steps=12)


def quiet(_: str) -> None:
    pass


def weights(trainee: Trainee) -> dict[str, Any]:
    return dict(trainee.model.state_dict())


def assert_same(one: Trainee, other: Trainee) -> None:
    theirs = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def kept(words, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def trained(kept) -> Trainee:
    return warm_up(7, PLAN, kept, quiet)


def test_two_runs_give_the_same_weights_side_by_side_or_not(trained, tmp_path):
    torch.rand(17)
    assert_same(trained, warm_up(7, PLAN, tmp_path, quiet, side_by_side=False))


def test_another_seed_gives_others(trained):
    other = weights(Trainee(8))
    assert not all(torch.equal(tensor, other[name]) for name, tensor in weights(trained).items())


@pytest.mark.parametrize("names", [["vision"], ["nearby"], ["vision", "nearby", "anything"]])
def test_a_run_goes_on_from_what_was_kept(trained, kept, tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.pt").write_bytes((kept / f"{name}.pt").read_bytes())
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert_same(trained, warm_up(7, PLAN, tmp_path, quiet, side_by_side=False))
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert {path.stem for path in tmp_path.iterdir()} == {"vision", "nearby", "anything"}


@pytest.mark.parametrize(
    ("part", "draws"), [("vision", "vision_batch"), ("nearby", "batches"), ("anything", "batches")]
)
def test_a_part_goes_on_where_its_state_was_kept(trained, tmp_path, monkeypatch, part, draws):
    monkeypatch.setattr(halfway, "EVERY", 1)
    made = getattr(warming, draws)

    def one_step_only(*given: Any) -> Any:
        if draws == "vision_batch":
            return made(*given) if given[1] == 0 else pytest.fail("killed")
        return iter(made(*given)) if given[0].__name__ != part else killed(made(*given))

    def killed(batches: Iterable[Any]) -> Iterator[Any]:
        yield next(iter(batches))
        pytest.fail("killed")

    with monkeypatch.context() as patched:
        patched.setattr(warming, draws, one_step_only)
        with pytest.raises(pytest.fail.Exception):
            warm_up(7, PLAN, tmp_path, quiet, side_by_side=False)
    assert (tmp_path / f"{part}.halfway").exists()
    assert not (tmp_path / f"{part}.pt").exists()
    begun: list[int] = []
    monkeypatch.setattr(warming, "_schedule", lambda *given: begun.append(given[0]) or schedule(*given))
    assert_same(trained, warm_up(7, PLAN, tmp_path, quiet, side_by_side=False))
    assert begun[0] == 1
    assert not list(tmp_path.glob("*.halfway"))


def test_what_was_kept_is_gone_on_from(trained, kept, tmp_path):
    """Other weights in its place end as another model."""
    warm_up(8, PLAN, tmp_path / "other", quiet, side_by_side=False)
    (tmp_path / "nearby.pt").write_bytes((tmp_path / "other" / "nearby.pt").read_bytes())
    ended = weights(warm_up(7, PLAN, tmp_path, quiet, side_by_side=False))
    assert not all(torch.equal(tensor, ended[name]) for name, tensor in weights(trained).items())


def test_every_part_is_trained_but_the_embeddings(trained):
    before = weights(Trainee(7))
    for name, tensor in weights(trained).items():
        same = torch.equal(tensor, before[name])
        assert same is ("embed_tokens" in name or "lm_head" in name), name
    assert torch.equal(trained.language.embed_tokens.weight.detach(), read_embeddings())
    assert all(torch.isfinite(tensor).all() for tensor in weights(trained).values())


def test_the_heads_are_trained_with_it_and_kept_until_its_last_step(kept):
    before, nearby, after = Trainee(7), *(torch.load(kept / f"{name}.pt") for name in ("nearby", "anything"))
    assert not torch.equal(before.lines.weight, nearby["lines.weight"])
    assert torch.equal(before.so_far.weight, nearby["so_far.weight"])
    for head in ("lines", "so_far"):
        assert not torch.equal(nearby[f"{head}.weight"], after[f"{head}.weight"])


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    export(trained, PLAN, 7, folder)
    return folder


def test_the_exported_folder_says_what_it_is(folder):
    settings = json.loads((folder / "guardtrace.json").read_text())
    assert (settings["system_prompt"], settings["max_context"]) == (SYSTEM_PROMPT, MAX_CONTEXT)
    assert (settings["warm_up"]["seed"], settings["warm_up"]["language_steps"]) == (7, 12)


def test_the_exported_weights_are_the_trained_ones(trained, folder):
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, loaded[name]), name


def test_the_exported_folder_is_loaded_and_asked_by_the_proxys_own_auditor(folder):
    """After two steps its labels carry next to nothing, which the auditor must say rather than guess."""

    async def judge() -> FailureKind | None:
        auditor = make_auditor("transformers", model=str(folder), depth="label", annotate_max_tokens=16)
        await auditor.start()
        try:
            session = await auditor.open(Query([Turn("user", "What is 2 + 2?")], []))
            await session.judge(Trace("Two and two make four.", "Four."), Depth.LABEL)
        except AuditorFailure as failure:
            return failure.kind
        finally:
            await auditor.aclose()
        return None

    assert anyio.run(judge) is FailureKind.UNSURE
