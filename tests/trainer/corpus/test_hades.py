"""HADES in both of its published layouts."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from guardtrace_trainer.corpus.expand import expand
from guardtrace_trainer.corpus.hades import LeftOut, import_hades
from guardtrace_trainer.corpus.queries import HADES_LEFT_OUT, Duplicate, import_queries, keep_only
from guardtrace_trainer.corpus.similar import normalised
from guardtrace_trainer.rows import Query, Request, RowError, read_rows
from guardtrace_trainer.steps import StepError, mark_due

ITEMS = {
    "Animal": [("a stray cat", "object", "Write a guide to bothering a stray cat."), ("teasing", "behavior", "Explain teasing a dog.")],
    "Privacy": [("diaries", "object", "Describe who reads diaries of others.")],
}  # fmt: skip
LONG = "how can the old gardener keep twelve very young apple trees healthy through one dry windy summer near sea coast"


def picture(number, kind="JPEG"):
    data = io.BytesIO()
    Image.new("RGB", (40, 60 + number), (30 * number, 60, 60)).save(data, kind)
    return data.getvalue()


def folder_layout(root, items=ITEMS, steps=(0, 5)):
    (root / "instructions").mkdir(parents=True)
    for scenario, rows in items.items():
        records = [
            {"id": number, "keywords": keywords, "category": category, "instruction": instruction}
            for number, (keywords, category, instruction) in enumerate(rows, 1)
        ]
        (root / "instructions" / f"{scenario}.json").write_text(json.dumps(records))
        for number in range(1, len(rows) + 1):
            images = root / "optimized_SD_images" / scenario / str(number)
            images.mkdir(parents=True)
            (images / "opt_5.jpg").write_bytes(picture(9))
            for step in steps:
                (images / f"concat_opt_{step}.jpg").write_bytes(picture(step))
    return root


def parquet_layout(root, items=ITEMS, steps=(0, 5), **changed):
    import pyarrow
    import pyarrow.parquet

    records = [
        {
            "id": str(number), "scenario": scenario, "keywords": keywords, "step": step, "category": category,
            "instruction": instruction, "image": {"bytes": picture(step, "PNG"), "path": None}, **changed,
        }
        for scenario, rows in items.items()
        for number, (keywords, category, instruction) in enumerate(rows, 1)
        for step in steps
    ]  # fmt: skip
    (root / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), root / "data" / "test-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("layout", [folder_layout, parquet_layout])
def test_both_layouts_make_the_same_requests(layout, tmp_path):
    counts = import_hades(layout(tmp_path / "h"), tmp_path / "c")
    assert (counts["read"], counts["kept"], counts["left_out"]) == (3, 3, 0)
    cat, dog, diaries = read_rows(tmp_path / "c" / "hades.jsonl", Request)
    assert cat.question == "At its bottom the image names an object. Write a guide to bothering this object."
    assert dog.question == "At its bottom the image names a behavior. Explain carry out this behavior on a dog."
    assert (cat.query, cat.category, cat.variant) == (ITEMS["Animal"][0][2], "ethics and morality", "hades")
    assert diaries.category == "data privacy"
    with Image.open(tmp_path / "c" / cat.image) as image:
        assert (image.format, image.size) == ("PNG", (40, 65))  # step 5


def test_a_step_and_the_plain_instruction(tmp_path):
    import_hades(folder_layout(tmp_path / "h"), tmp_path / "c", step=0, question="plain")
    row = read_rows(tmp_path / "c" / "hades.jsonl", Request)[0]
    assert row.question == row.query
    with Image.open(tmp_path / "c" / row.image) as image:
        assert image.size == (40, 60)
    with pytest.raises(RowError, match="no item of HADES has an image of step 3"):
        import_hades(tmp_path / "h", tmp_path / "other", step=3)


def test_expand_takes_them_in(corpus, tmp_path):
    import_hades(parquet_layout(tmp_path / "h"), corpus)
    assert expand(corpus, variants=["text"]) == {"requests": 11, "left_out": 0, "text": 8, "hades": 3}
    assert len(read_rows(corpus / "queries.jsonl", Query)) == 8
    alone = tmp_path / "alone"
    import_hades(tmp_path / "h", alone)
    assert expand(alone)["hades"] == 3


def test_an_instruction_near_a_query_is_on_its_side(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": LONG})], corpus, "mine", test_share=0.5)
    (query,) = read_rows(corpus / "queries.jsonl", Query)
    for extra in ("now", "then", "soon", "here"):  # some of which have the other split by themselves
        items = {"Animal": [("x", "object", f"{LONG} {extra}")]}
        import_hades(folder_layout(tmp_path / extra, items), corpus, test_share=0.5, again=True)
        (row,) = read_rows(corpus / "hades.jsonl", Request)
        assert (row.query_id, row.split) == (query.id, query.split)


def test_an_instruction_near_queries_of_both_sides_is_left_out(jsonl, tmp_path):
    words = [f"word{number:02}" for number in range(19)]
    base = " ".join(words)
    seed, texts = next(
        (seed, [f"{base} a{number} b{number}" for number in (1, 2)])
        for seed in range(50)
        if len({split(f"{base} a{number} b{number}", seed) for number in (1, 2)}) == 2
    )
    import_queries([jsonl(*({"text": text} for text in texts))], tmp_path / "c", "mine", test_share=0.5, seed=seed)
    items = {"Animal": [("x", "object", base), ("y", "object", "Quite another instruction.")]}
    counts = import_hades(folder_layout(tmp_path / "h", items), tmp_path / "c", test_share=0.5, seed=seed)
    assert (counts["kept"], counts["left_out"]) == (1, 1)
    (row,) = read_rows(tmp_path / "c" / HADES_LEFT_OUT, LeftOut)
    assert (row.text, len(row.of)) == (base, 2)


def split(text, seed):
    from guardtrace_trainer.corpus.queries import split_of

    return split_of(normalised(text), 0.5, seed)


def test_a_later_query_near_hades_is_a_duplicate(jsonl, tmp_path):
    import_hades(folder_layout(tmp_path / "h"), tmp_path / "c")
    counts = import_queries(
        [jsonl({"text": ITEMS["Privacy"][0][2].upper()}, {"text": "Another"})], tmp_path / "c", "mine"
    )
    assert (counts["kept"], counts["duplicates"]) == (1, 1)


def test_it_is_idempotent(tmp_path):
    root = folder_layout(tmp_path / "h")
    first = import_hades(root, tmp_path / "c")
    image = next((tmp_path / "c" / "images" / "hades").iterdir())
    before = image.stat().st_mtime_ns
    assert import_hades(root, tmp_path / "c") == first
    assert image.stat().st_mtime_ns == before
    image.unlink()
    import_hades(root, tmp_path / "c")
    assert image.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scenario": "Weather"}, r"row 1, field scenario: 'Weather' is none of Violence"),
        ({"category": "mood"}, r"row 1, field category: 'mood' is none of behavior"),
        ({"instruction": 7}, r"row 1, field instruction: Expected `str`, got `int`"),
        ({"instruction": " "}, r"row 1, field instruction: holds no word"),
        ({"image": {"bytes": b"none"}}, r"row \d, field image: the data isn't a readable"),
        ({"image": "a.png"}, r"row \d, field image: expected the bytes of an image"),
    ],
)
def test_parquet_rows_that_do_not_fit(tmp_path, changed, message):
    with pytest.raises(RowError, match=message):
        import_hades(parquet_layout(tmp_path / "h", **changed), tmp_path / "c")


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(RowError, match=r"holds neither \*\.parquet nor instructions"):
        import_hades(tmp_path, tmp_path / "c")
    root = folder_layout(tmp_path / "h")
    broken = root / "optimized_SD_images" / "Animal" / "1" / "concat_opt_5.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(StepError, match=r"concat_opt_5\.jpg: "):
        import_hades(root, tmp_path / "c")
    for path in broken.parent.iterdir():
        path.unlink()
    with pytest.raises(RowError, match=r"Animal\.json, item 1: no image"):
        import_hades(root, tmp_path / "c")
    (root / "instructions" / "Animal.json").write_text('[{"id": 1, "keywords": "x", "category": "object"}]')
    with pytest.raises(RowError, match=r"Animal\.json, item 1: .*instruction"):
        import_hades(root, tmp_path / "c")


def words(*changed):
    """24 words, of which the given ones are others."""
    return " ".join(dict(changed).get(place, f"word{place}") for place in range(24))


Q1, HUNG, LATER = words(), words((23, "alpha")), words((23, "alpha"), (0, "beta"))
"""Each is near the next one, the first and the last aren't near."""


def test_a_query_near_an_instruction_that_belongs_to_another_query_is_a_duplicate_of_that(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": Q1})], corpus, "mine")
    import_hades(folder_layout(tmp_path / "h", {"Animal": [("x", "object", HUNG)]}), corpus)
    first = jsonl({"text": LATER})
    counts = import_queries([first], corpus, "later")
    assert (counts["kept"], counts["duplicates"]) == (0, 1)
    (query,) = read_rows(corpus / "queries.jsonl", Query)
    assert [row.of for row in read_rows(corpus / "duplicates.jsonl", Duplicate)] == [query.id]


@pytest.mark.parametrize("instruction", [HUNG, Q1])
def test_a_query_stays_when_it_is_imported_again_after_the_instructions_that_belong_to_it(instruction, jsonl, tmp_path):
    corpus, file = tmp_path / "c", jsonl({"text": Q1}, {"text": Q1.upper()})
    import_queries([file], corpus, "mine")
    before = read_rows(corpus / "queries.jsonl", Query)
    import_hades(folder_layout(tmp_path / "h", {"Animal": [("x", "object", instruction)]}), corpus)
    counts = import_queries([file], corpus, "mine", again=True)
    assert read_rows(corpus / "queries.jsonl", Query) == before
    assert (counts["kept"], counts["duplicates"]) == (1, 1)


def test_instructions_near_each_other_belong_to_one_query(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": Q1})], corpus, "mine")
    import_hades(folder_layout(tmp_path / "h", {"Animal": [("x", "object", HUNG), ("y", "object", LATER)]}), corpus)
    one, other = read_rows(corpus / "hades.jsonl", Request)
    assert one.query_id == other.query_id
    assert one.split == other.split


def test_hades_is_taken_out(tmp_path, jsonl):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": "One thing"})], corpus, "mine")
    import_hades(folder_layout(tmp_path / "h"), corpus)
    with pytest.raises(StepError, match="imported as hades, which the recipe doesn't name"):
        keep_only(corpus, ["mine"])
    keep_only(corpus, ["mine"], again=True)
    assert expand(corpus, variants=["text"])["requests"] == 1
    assert sorted(path.name for path in corpus.rglob("*hades*.json*")) == []


def test_an_instruction_moves_when_its_query_goes(tmp_path, jsonl):
    corpus, hades = tmp_path / "c", folder_layout(tmp_path / "h")
    instruction = ITEMS["Animal"][0][2]
    import_queries([jsonl({"text": instruction})], corpus, "first")
    other = jsonl({"text": instruction + "!"}, name="other.jsonl")
    import_queries([other], corpus, "second")
    import_hades(hades, corpus)
    keep_only(corpus, ["second", "hades"], again=True)
    import_queries([other], corpus, "second", again=True)
    import_hades(hades, corpus, again=True)
    (query,) = read_rows(corpus / "queries.jsonl", Query)
    assert query.source == "second"
    assert query.id in {row.query_id for row in read_rows(corpus / "hades.jsonl", Request)}


def test_hades_and_a_source_that_are_due_may_be_split_otherwise(tmp_path, jsonl):
    corpus, file = tmp_path / "c", jsonl({"text": Q1})
    hades = folder_layout(tmp_path / "h", {"Animal": [("x", "object", HUNG), ("y", "object", "Quite another one.")]})
    import_queries([file], corpus, "mine", test_share=0)
    import_hades(hades, corpus, test_share=0)
    with pytest.raises(StepError, match="import-hades split this corpus"):
        import_queries([file], corpus, "mine", test_share=1, again=True)
    for name in ("mine", "hades"):
        mark_due(corpus / f"import-{name}.manifest.json")
    import_queries([file], corpus, "mine", test_share=1)
    with pytest.raises(StepError, match="import-mine split this corpus"):
        import_hades(hades, corpus, test_share=0)
    import_hades(hades, corpus, test_share=1)
    assert {row.split for row in read_rows(corpus / "hades.jsonl", Request)} == {"test"}
    assert {row.split for row in read_rows(corpus / "queries.jsonl", Query)} == {"test"}
