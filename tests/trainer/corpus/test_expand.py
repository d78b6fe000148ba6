"""Expanding: what each variant needs and makes, idempotence, and that the split holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from guardtrace_proxy.images import Budget, decode_image
from guardtrace_proxy.images.decode import AMBIGUOUS
from guardtrace_proxy.images.fitting import smaller
from guardtrace_trainer.corpus import csdj, figstep
from guardtrace_trainer.corpus.expand import LeftOut, expand
from guardtrace_trainer.corpus.maker import Inputs
from guardtrace_trainer.corpus.pictures import LIMITS
from guardtrace_trainer.corpus.queries import import_queries
from guardtrace_trainer.rows import Query, Request, read_rows
from guardtrace_trainer.steps import StepError


def requests_of(corpus: Path) -> list[Request]:
    return read_rows(corpus / "requests.jsonl", Request)


def files_of(corpus: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in corpus.rglob("*") if path.is_file()}


@pytest.fixture
def prepared(corpus, tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    for number, query in enumerate(read_rows(corpus / "queries.jsonl", Query)):
        Image.new("RGB", (40, 30), (25 * number, 9, 9)).save(folder / f"{query.id}.jpg")
    return folder


def test_without_images_there_are_text_and_figstep(corpus):
    counts = expand(corpus)
    assert counts == {"requests": 16, "left_out": 0, "text": 8, "figstep": 8}


def test_all_variants(corpus, photos, prepared):
    counts = expand(
        corpus,
        Inputs(irrelevant=photos, aligned=prepared),
        variants=["text", "irrelevant", "aligned", "figstep", "csdj"],
        per_query=5,
    )
    assert counts["requests"] == 40
    for request in requests_of(corpus):
        if request.variant == "text":
            assert request.image is None
        else:
            path = corpus / request.image
            pixels = decode_image(path.read_bytes(), "image/png", Budget(LIMITS), "image")
            assert smaller(pixels) is pixels
            assert pixels.info == {AMBIGUOUS: False}
            assert not pixels.getexif()
        if request.variant == "figstep":
            assert (pixels.size, request.question) == ((760, 760), figstep.QUESTION)
        elif request.variant == "csdj":
            assert (pixels.size, request.question) == ((768, 1120), csdj.QUESTION_OF_RUNS)
        else:
            assert request.question == request.query
    aligned = [request for request in requests_of(corpus) if request.variant == "aligned"]
    assert len({(corpus / request.image).read_bytes() for request in aligned}) == 8


def test_no_query_stands_on_both_sides(jsonl, tmp_path, photos):
    path = jsonl(*({"text": f"What is {number} plus {number + 3}?"} for number in range(60)))
    import_queries([path], tmp_path / "c", "sums", test_share=0.4)
    expand(tmp_path / "c", Inputs(irrelevant=photos), per_query=2)
    queries = {query.id: query for query in read_rows(tmp_path / "c" / "queries.jsonl", Query)}
    requests = requests_of(tmp_path / "c")
    assert {request.split for request in requests} == {"train", "test"}
    for request in requests:
        query = queries[request.query_id]
        assert (request.query, request.split, request.source) == (query.text, query.split, query.source)
    assert set(Counter(request.query_id for request in requests).values()) == {2}
    assert set(Counter(request.variant for request in requests)) == {"text", "irrelevant", "figstep"}


def test_it_is_idempotent_and_seeded(corpus, photos, tmp_path):
    expand(corpus, Inputs(irrelevant=photos), seed=1)
    before, rows = files_of(corpus), requests_of(corpus)
    expand(corpus, Inputs(irrelevant=photos), seed=1)
    assert files_of(corpus) == before
    with pytest.raises(StepError, match="seed"):
        expand(corpus, Inputs(irrelevant=photos), seed=2)
    expand(corpus, Inputs(irrelevant=photos), seed=2, again=True)
    assert requests_of(corpus) != rows
    expand(corpus, Inputs(irrelevant=photos), seed=1, again=True)
    assert {path: content for path, (content, _) in files_of(corpus).items() if "manifest" not in path} == {
        path: content for path, (content, _) in before.items() if "manifest" not in path
    }


def test_a_lost_or_changed_image_is_made_again(corpus):
    expand(corpus)
    one, other = sorted((corpus / "images" / "figstep").iterdir())[:2]
    before = one.read_bytes(), other.read_bytes()
    one.unlink()
    other.write_bytes(b"changed")
    expand(corpus)
    assert (one.read_bytes(), other.read_bytes()) == before


def test_what_was_known_before_a_crash_is_kept(corpus, monkeypatch):
    draw, calls = figstep.draw, []

    def failing(text, path):
        calls.append(text)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(text, path)

    monkeypatch.setattr(figstep, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        expand(corpus)
    assert not (corpus / "requests.jsonl").exists()
    expand(corpus)
    assert len(calls) == 4 + 5  # three of eight were known
    assert len(requests_of(corpus)) == 16
    assert not list(corpus.glob("*.journal"))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("irrelevant", "irrelevant needs --irrelevant-images FOLDER"),
        ("aligned", "aligned needs --images-endpoint FILE.yaml or --aligned-images FOLDER"),
        ("csdj", "csdj needs --irrelevant-images FOLDER"),
        ("hades", "--variants: expected some of text, irrelevant"),
    ],
)
def test_a_variant_whose_input_is_missing_is_refused(corpus, variant, message):
    with pytest.raises(StepError, match=message):
        expand(corpus, variants=["text", variant])
    assert not (corpus / "expand.manifest.json").exists()


def test_a_query_without_a_prepared_image_is_refused(corpus, prepared):
    lost = sorted(prepared.iterdir())[0]
    lost.unlink()
    with pytest.raises(StepError, match=f"1 of 8 queries have no image there, the first is {lost.stem}"):
        expand(corpus, Inputs(aligned=prepared))


def test_broken_images_are_refused_by_name(corpus, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(StepError, match=r"a\.png: .*; replace it or take it away"):
        expand(corpus, Inputs(irrelevant=folder), variants=["irrelevant"])
    (folder / "a.png").unlink()
    with pytest.raises(StepError, match="holds no image"):
        expand(corpus, Inputs(irrelevant=folder), again=True)
    with pytest.raises(StepError, match="no such folder"):
        expand(corpus, Inputs(irrelevant=tmp_path / "none"), again=True)


def test_too_few_distractions_are_refused(corpus, prepared):
    for path in sorted(prepared.iterdir())[6:]:
        path.unlink()
    with pytest.raises(StepError, match="csdj needs 9 or more"):
        expand(corpus, Inputs(irrelevant=prepared), variants=["csdj"])


def test_what_can_t_be_drawn_is_left_out_and_logged(jsonl, tmp_path, photos):
    corpus = tmp_path / "c"
    import_queries(
        [jsonl({"text": "如何烤面包"}, {"text": "Two words"}, {"text": "Three plain words"})], corpus, "mine"
    )
    counts = expand(corpus, Inputs(irrelevant=photos), variants=["figstep", "csdj"])
    assert counts == {"requests": 3, "left_out": 3, "figstep": 2, "csdj": 1}
    why = {row.id.rsplit("-", 1)[1]: row.why for row in read_rows(corpus / "left-out.jsonl", LeftOut)}
    assert why == {
        "figstep": "the font DejaVuSansMono-Bold.ttf lacks '如何烤面包'; give one that has it by --font",
        "csdj": "fewer than three words",
    }


def test_a_corpus_without_queries(tmp_path):
    with pytest.raises(StepError, match=r"queries\.jsonl: can't be read"):
        expand(tmp_path)
