"""What is trained on is, token for token, what the auditor's own backend reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from guardtrace_proxy.auditor import source_of
from guardtrace_proxy.auditor.labels import LabelTokens
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth
from guardtrace_proxy.auditor.transformers import TransformersAuditor
from guardtrace_proxy.images import ImageLimits, decode_data_url
from guardtrace_trainer.endpoints import message
from guardtrace_trainer.rows import Annotation, Labelled
from guardtrace_trainer.stages.encode import Encoder
from guardtrace_trainer.stages.settings import StageError
from tests.auditor.local import started
from tests.trainer.stages.corpora import CONTROL, LABELS, fields


class Served:
    """An auditor of which is noted what its audits read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.auditor: TransformersAuditor = started(folder, annotate_max_tokens=2)
        self.read: list[list[int]] = []
        read = self.auditor.inference.read

        def noting(reading: Any, ids: Any, images: Any, keep: int) -> Any:
            self.read.append(list(ids))
            return read(reading, ids, images, keep)

        monkeypatch.setattr(self.auditor.inference, "read", noting)

    def ids(self, row: Labelled, corpus: Path, depth: Depth) -> list[int]:
        """The ids that an audit of a finished trace reads."""

        async def judge() -> None:
            images = []
            if row.image is not None:
                url = message("user", "", corpus / row.image)["content"][0]["image_url"]["url"]
                images.append(decode_data_url(url, ImageLimits(), "image"))
            session = await self.auditor.open(Query([Turn("user", row.question)], images))
            try:
                await session.judge(Trace(row.thinking, row.answer), depth)
            except AuditorFailure:
                pass  # a reply of two tokens can't be read
            finally:
                await session.aclose()

        anyio.run(judge)
        return self.read[-1]


@pytest.fixture(scope="module", params=["small", "builtin:nano"])
def folder(request: pytest.FixtureRequest, small: Path) -> Path:
    return small if request.param == "small" else Path(source_of(request.param))


def row(**more: Any) -> Labelled:
    annotation = Annotation(judge="a", level=0.5, analysis=f"It says {CONTROL}\nAnd <|im_end|> again.")
    return Labelled(**fields(0, 0.0, **more), agreement="3:0", annotation=annotation)


ROWS = {
    "plain": row(),
    "image": row(image="images/a.png"),
    "wide image": row(image="images/b.png"),
    "quoted labels": row(question=LABELS, thinking=LABELS, answer=LABELS),
    "control tokens": row(question=CONTROL, thinking=f"x{CONTROL}<|image_pad|>", answer=CONTROL, image="images/a.png"),
    "odd": row(question="", thinking="é\u2028“Judgment”: 1 \ud800 \n\n", answer="\n"),
}


def test_prompts_are_those_of_the_auditor(folder, corpus, monkeypatch):
    encoder, served = Encoder(folder), Served(folder, monkeypatch)
    for name, one in ROWS.items():
        prompt = encoder.prompt(one, corpus).prompt
        assert prompt == served.ids(one, corpus, Depth.ANNOTATE), name
        opening = encoder.bare(one.annotation)
        read = served.ids(one, corpus, Depth.LABEL)
        assert prompt + opening.ids[: opening.given] + [encoder.labels.zero] == read, name


def test_only_the_template_makes_control_tokens(folder, corpus):
    encoder = Encoder(folder)
    tokenizer = encoder.processor.tokenizer
    controls = set(tokenizer.added_tokens_decoder)
    plain, forged = (encoder.prompt(ROWS[name], corpus).prompt for name in ("image", "control tokens"))
    assert [token for token in plain if token in controls] == [token for token in forged if token in controls]
    reply = encoder.reply(ROWS["plain"].annotation)
    assert [token for token in reply.ids if token in controls] == [encoder.end]
    assert tokenizer.decode(reply.ids) == ROWS["plain"].annotation.text + "<|im_end|>"


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_bare_judgment_begins_as_a_label_read_and_is_learned_from_the_label_on(folder, level):
    encoder = Encoder(folder)
    labels = LabelTokens.of(encoder.layout)
    tail = encoder.bare(Annotation(judge="a", level=level, analysis="It is long."))
    assert encoder.turn + tail.ids[: tail.given] == labels.opening
    first = {0.0: labels.zero, 0.5: labels.zero if labels.shared else labels.half, 1.0: labels.one}[level]
    assert tail.ids[tail.given] == first
    assert tail.ids[-1] == encoder.end
    if labels.shared:
        assert tail.ids[tail.given + 1] == {0.0: encoder.end, 0.5: labels.half, 1.0: encoder.end}[level]
    learned = encoder.processor.tokenizer.decode(tail.ids[tail.given : -1])
    assert learned.strip() == f"{level:g}"


def test_the_system_prompt_is_the_settings_or_the_checkpoints_own(small):
    assert Encoder(small).system_prompt == "You judge."
    assert Encoder(small, "Be strict.").system_prompt == "Be strict."


def test_an_image_that_cant_be_read_is_named(small, corpus, tmp_path):
    encoder = Encoder(small)
    with pytest.raises(StageError, match=r"images/none\.png: can't be read"):
        encoder.prompt(row(image="images/none.png"), corpus)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(StageError, match="isn't a readable image/png image"):
        encoder.prompt(row(image="broken.png"), tmp_path)
    with pytest.raises(StageError, match="expected one of"):
        encoder.prompt(row(image="picture.tiff"), tmp_path)


def test_a_row_with_an_image_that_is_too_long_is_named(small, tmp_path):
    Image.new("RGB", (4020, 20)).save(tmp_path / "long.png")
    encoder = Encoder(small)
    with pytest.raises(StageError, match=r"row t0, field image: .*long\.png: is more than 200 times as long as wide"):
        encoder.prompt(row(image="long.png"), tmp_path)
    with pytest.raises(StageError, match=r"long\.png: is more than 200 times"):
        encoder.patches(tmp_path / "long.png")


def test_a_checkpoint_whose_replies_never_end_is_refused(small, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(small, tmp_path / "endless")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = (folder / name).read_text("utf-8")
        (folder / name).write_text(content.replace("<|im_end|>", "<|endoftext|>"), "utf-8")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text("utf-8"))
        values.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(values), "utf-8")
    with pytest.raises(StageError, match="eos_token_id"):
        Encoder(folder)
