"""Sets that are no evaluation folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guardtrace_trainer.evaluation.data import BENIGN, SAFE, SAFE_REASONING, UNSAFE
from guardtrace_trainer.evaluation.readers import FIGSTEP, RECORDED, read_items, sources
from guardtrace_trainer.rows import Annotation, Labelled, RowError, write_rows
from tests.trainer.evaluation.serving import row, write_image, write_qta

ROOT = Path(__file__).parents[3]
HANDWRITTEN = ROOT / "tests" / "data" / "handwritten"
SHARED = ROOT.parent / "shared" / "data"


def element(**fields: Any) -> dict[str, Any]:
    return {
        "question": "Q?",
        "thinking": "Hm.",
        "response": "A.",
        "evaluation_result": 0.5,
        "image_name": None,
        **fields,
    }


def published(path: Path, *elements: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(elements, ensure_ascii=False), "utf-8")
    return path


def test_the_folder_tells_which_reader(tmp_path: Path) -> None:
    assert [item.subset for item in read_items(write_qta(tmp_path / "a", [row(1, 0.0)]))] == ["a"]
    assert sources(tmp_path / "a") == [tmp_path / "a" / "qta.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match=r"empty: expected a folder with qta\.jsonl, .* star1"):
        read_items(tmp_path / "empty")


def test_handwritten_items_count_onsets_from_one() -> None:
    dev = read_items(HANDWRITTEN, "dev")
    assert len(dev) == 60
    assert Counter(item.kind for item in dev) == {UNSAFE: 36, SAFE_REASONING: 12, BENIGN: 12}
    second = next(item for item in dev if item.id == "hw-dev-002")
    assert (second.onset_sentence, second.level) == (1, 0.5)
    assert all(item.onset_sentence is None for item in dev if item.level == 0)
    assert len(read_items(HANDWRITTEN)) == 120
    assert sources(HANDWRITTEN) == [HANDWRITTEN / "dev.jsonl", HANDWRITTEN / "test.jsonl"]


def test_a_corpus_is_judged_by_what_its_jury_agreed_on(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")

    def labelled(id: str, variant: str, level: float, image: str | None) -> Labelled:
        return Labelled(
            id=id,
            query_id="q",
            query="Plain?",
            source="s",
            split="test",
            variant=variant,  # type: ignore[arg-type]
            question="As sent?",
            image=image,
            category="cybersecurity",
            request_id="r",
            model="m",
            thinking="Hm.",
            answer="A.",
            agreement="3:0",
            annotation=Annotation(judge="j", level=level, analysis="x"),
        )

    write_rows(
        tmp_path / "test.jsonl", [labelled("1", "text", 0.0, None), labelled("2", "figstep", 1.0, "images/a.png")]
    )
    first, second = read_items(tmp_path)
    assert (first.subset, first.kind, first.question, first.category) == ("text", SAFE, "As sent?", "cybersecurity")
    assert (second.subset, second.kind, second.level) == ("figstep", UNSAFE, 1.0)
    assert second.image is not None
    assert [item.key for item in read_items(tmp_path / "test.jsonl")] == ["text/1", "figstep/2"]
    with pytest.raises(RowError, match="has no halves"):
        read_items(tmp_path, "dev")
    assert first.group == second.group is not None  # one query
    assert sources(tmp_path) == [tmp_path / "test.jsonl"]
    write_rows(tmp_path / "expert_test.jsonl", [labelled("3", "text", 0.5, None)])
    assert [(item.key, item.level) for item in read_items(tmp_path)][2] == ("text/3", 0.5)
    assert [item.key for item in read_items(tmp_path / "expert_test.jsonl")] == ["text/3"]
    assert sources(tmp_path) == [tmp_path / "test.jsonl", tmp_path / "expert_test.jsonl"]
    (tmp_path / "test.jsonl").unlink()
    assert [item.key for item in read_items(tmp_path)] == ["text/3"]


def test_published_files_with_their_quirk(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "S-Eval_1.png")
    write_image(tmp_path / "images" / "other.png")
    published(
        tmp_path / "S-Eval_600.json",
        element(image_name="S-Eval_1.png", evaluation_result="1"),
        element(image_name="other.png", evaluation_result="0"),
        element(),
    )
    published(tmp_path / "MMJ_500.json", element(image_name=""))
    published(tmp_path / "mm-eval_500.json", element())
    published(tmp_path / "notes.json")
    items = read_items(tmp_path)
    assert [(item.subset, item.level) for item in items] == [
        ("MMJ-Eval", 0.5),
        ("S-Eval-VL", 1.0),
        ("S-Eval-VL", 0.0),
        ("S-Eval-VL", 0.5),
        ("MM-Eval", 0.5),
    ]
    assert [item.question == FIGSTEP for item in items] == [False, True, False, False, False]
    assert [item.image is not None for item in items] == [False, True, True, False, False]
    assert items[1].answer == "A."
    assert [path.name for path in sources(tmp_path)] == ["MMJ_500.json", "S-Eval_600.json", "mm-eval_500.json"]
    assert len(read_items(tmp_path / "S-Eval_600.json")) == 3


def test_published_images_may_lie_elsewhere(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "a.png")
    file = published(tmp_path / "test" / "HADES_500.json", element(image_name="a.png"))
    with pytest.raises(RowError, match=r"item 1, field image_name: there is no folder .*images; say with --images"):
        read_items(file)
    assert read_items(file, images=tmp_path / "pictures")[0].subset == "HADES-Eval"
    with pytest.raises(RowError, match=r"item 1, field image_name: 'a\.png': .* can't be read"):
        read_items(file, images=tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (element(evaluation_result="unsafe"), r"item 2: field evaluation_result: 'unsafe' is none of 0, 0\.5 and 1"),
        (element(thinking=3), r"item 2: Expected `str`, got `int` - at `\$\.thinking`"),
        (element(more=1), r"item 2: Object contains unknown field `more`"),
    ],
)
def test_a_published_element_that_does_not_fit(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_items(published(tmp_path / "MM_500.json", element(), bad))


def test_a_published_file_is_an_array(tmp_path: Path) -> None:
    (tmp_path / "MM_500.json").write_text('{"a": 1}')
    with pytest.raises(RowError, match="expected a JSON array"):
        read_items(tmp_path / "MM_500.json")


@pytest.mark.parametrize(
    ("tags", "raw", "parts"),
    [
        ("<think>", "<think>\nHm.</think><answer>A.</answer>", ("Hm.", "A.")),
        ("◁think▷", "◁think▷Hm.◁/think▷A.", ("Hm.", "A.")),
        ("</think> only", "Hm.\n</think>\n\nA.", ("Hm.", "A.")),
        ("none", "Hm, and it never ends", ("Hm, and it never ends", "")),
        ("<think>", "<think>Hm, and it never ends", ("Hm, and it never ends", "")),
    ],
)
def test_raw_output_is_split_as_the_proxy_splits_it(
    tmp_path: Path, tags: str, raw: str, parts: tuple[str, str]
) -> None:
    folder = tmp_path / "photo-vlm"
    folder.mkdir()
    written = {"id": "1", "question": "Q?", "thinking": "t", "answer": "a", "raw": raw, "tags": tags, "tokens": 7}
    (folder / "traces.jsonl").write_text(json.dumps(written), "utf-8")
    (item,) = read_items(folder)
    assert (item.thinking, item.answer) == parts


def test_apriel_ends_its_steps_with_a_word_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "photo-vlm"
    folder.mkdir()
    raw = "Here are my steps:\nHm.\n[BEGIN FINAL RESPONSE]\nA."
    written = {
        "id": "1",
        "question": "Q?",
        "thinking": "",
        "answer": "",
        "raw": raw,
        "tags": "none",
        "model": "Apriel-1.5",
    }
    (folder / "traces.jsonl").write_text(json.dumps(written), "utf-8")
    (item,) = read_items(folder)
    assert (item.thinking, item.answer) == ("Here are my steps:\nHm.", "A.")


def test_the_authored_set() -> None:
    folder = ROOT / "tests" / "data" / "qta"
    if not (folder / "qta.jsonl").is_file():
        pytest.skip("the authored set isn't there")
    halves = [read_items(folder, half) for half in ("dev", "test")]
    assert sum(map(len, halves)) == len(read_items(folder)) >= 150
    for items in halves:
        assert sum(item.image is not None for item in items) * 3 >= len(items)
        assert {item.level for item in items} == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_sets(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip("the recorded sets aren't at hand")
    items = read_items(SHARED / name)
    file, kind, level = RECORDED[name]
    assert len(items) == len((SHARED / name / file).read_text("utf-8").splitlines())
    assert {(item.subset, item.kind, item.level) for item in items} == {(name, kind, level)}
    assert all(item.thinking and item.question and item.category for item in items)
    tags = ("<think>", "</think>", "◁think▷", "◁/think▷", "<answer>")
    assert name != "photo-vlm" or not any(tag in item.thinking + item.answer for item in items for tag in tags)
    assert (name == "photo-vlm") == any(item.image is not None for item in items)
