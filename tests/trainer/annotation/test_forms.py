"""Forms out to experts and back in: by CSV and JSONL, through spreadsheets, and with every cell that can be wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardtrace_trainer.annotation import forms
from guardtrace_trainer.annotation.commands import app
from guardtrace_trainer.annotation.forms import COLUMNS, FormError, read_forms, renew_form, write_form
from guardtrace_trainer.annotation.review import in_shown_order, read_reviews, review_of, version
from guardtrace_trainer.rows import Pair, read_rows, write_rows
from tests.trainer.corpora import vote

NASTY = 'a "quoted"; cell,\nwith\tlines\r\nand \x1b[2J\x00 controls\u202e'
ITEMS = [vote(0, 0, 0.5, 1), vote(1, 1, 0.5, 0, thinking=NASTY, answer="=cmd|' /C calc'!A0"), vote(2, 0.5, 0, 1)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8-sig") -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def filled(tmp_path: Path, *levels: str, expert: str = "Kim", **fields: str) -> list[dict[str, str]]:
    """The first rows of a form, with levels."""
    write_form(tmp_path / "form.csv", ITEMS)
    rows = rows_of(tmp_path / "form.csv")[: len(levels)]
    return [row | {"level": level, "expert": expert} | fields for row, level in zip(rows, levels, strict=True)]


def test_a_csv_shows_the_item_and_no_judge(tmp_path):
    assert write_form(tmp_path / "form.csv", ITEMS) == 3
    rows = rows_of(tmp_path / "form.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["id"] for row in rows] == [item.id for item in ITEMS]
    for row, item in zip(rows, ITEMS, strict=True):
        shown = [row[f"annotation_{number}"] for number in (1, 2, 3)]
        assert shown == [f"[{one.level:g}] {one.analysis}" for one in in_shown_order(item)]
        assert (row["question"], row["image"]) == (item.question, item.image or "")
        assert (row["expert"], row["level"], row["comment"]) == ("", "", "")
    assert "judge" not in (tmp_path / "form.csv").read_text("utf-8-sig")


def test_model_text_neither_runs_nor_drives_anything(tmp_path):
    write_form(tmp_path / "form.csv", ITEMS)
    row = rows_of(tmp_path / "form.csv")[1]
    assert row["answer"].startswith("'=cmd")
    assert row["thinking"] == 'a "quoted"; cell,\nwith    lines\\r\nand \\x1b[2J\\x00 controls\\u202e'


@pytest.mark.parametrize(("delimiter", "half"), [(",", "0.5"), (";", "0,5"), ("\t", ".5")])
def test_what_spreadsheets_of_other_languages_save_is_read(tmp_path, delimiter, half):
    path = fill(tmp_path / "back.csv", filled(tmp_path, "0", half, ""), delimiter)
    votes = read_forms([path], ITEMS, [])
    assert votes == [review_of(ITEMS[0], "Kim", 0), review_of(ITEMS[1], "Kim", 0.5)]


def test_shown_columns_may_be_dropped_and_comments_are_kept(tmp_path):
    rows = filled(tmp_path, "1", comment="hard, this one")
    kept = [{name: row[name] for name in ("level", "id", "comment", "expert", "version")} for row in rows]
    assert read_forms([fill(tmp_path / "back.csv", kept)], ITEMS, [])[0].comment == "hard, this one"


def test_ids_that_look_like_formulas_come_back(tmp_path):
    item = vote(0, 0, 0.5, 1, id="-odd id")
    write_form(tmp_path / "form.csv", [item])
    (row,) = rows_of(tmp_path / "form.csv")
    assert row["id"] == "'-odd id"
    back = fill(tmp_path / "back.csv", [row | {"level": "1", "expert": "Kim"}])
    assert [one.item for one in read_forms([back], [item], [])] == ["-odd id"]


def test_jsonl_there_and_back(tmp_path):
    write_form(tmp_path / "form.jsonl", ITEMS)
    rows = [json.loads(line) for line in (tmp_path / "form.jsonl").read_text("utf-8").splitlines()]
    assert rows[1]["thinking"] == NASTY
    assert [one["level"] for one in rows[0]["annotations"]] == [one.level for one in in_shown_order(ITEMS[0])]
    assert set(rows[0]["annotations"][0]) == {"level", "analysis"}
    rows[0] |= {"expert": "Kim", "level": 0.5}
    rows[1] |= {"expert": "Kim", "level": 1}
    (tmp_path / "back.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_forms([tmp_path / "back.jsonl"], ITEMS, []) == [
        review_of(ITEMS[0], "Kim", 0.5),
        review_of(ITEMS[1], "Kim", 1),
    ]


BAD_CELLS = [
    ({"level": "0.7"}, "column level: expected 0, 0.5 or 1, found '0.7'"),
    ({"level": "safe\x1b[2J"}, r"column level: expected 0, 0.5 or 1, found 'safe\\x1b[2J'"),
    ({"id": "q9"}, "column id: q9 is none of the items under review"),
    ({"version": "v0"}, "column version: q001-text-m has other text now; write the form anew"),
    ({"expert": " "}, "column expert: a name is missing; fill it in, or give --expert"),
]


@pytest.mark.parametrize(("cell", "said"), BAD_CELLS)
def test_bad_cells_are_named_with_their_line_and_nothing_is_taken(tmp_path, cell, said):
    rows = filled(tmp_path, "0", "1", "1")
    rows[1] |= cell
    path = fill(tmp_path / "back.csv", rows)
    with pytest.raises(FormError) as caught:
        read_forms([path], ITEMS, [])
    assert str(caught.value) == f"{path}, line 3, {said}"


def test_lines_are_counted_over_cells_of_several(tmp_path):
    rows = filled(tmp_path, "0", "1", "x", expert="")
    path = fill(tmp_path / "back.csv", rows)
    text = path.read_text("utf-8-sig").splitlines()
    with pytest.raises(FormError) as caught:
        read_forms([path], ITEMS, [], expert="Kim")
    line = int(str(caught.value).partition("line ")[2].partition(",")[0])
    assert text[line - 1].startswith(ITEMS[2].id)
    assert line == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: column id is missing"),
        (b"id,version,expert\n", "line 1: column level is missing"),
        (b"id,version,expert,level,mood\n", "line 1: column 'mood' is unknown; notes go into the column comment"),
        (b"id,id,version,expert,level\n", "line 1: column id comes twice"),
        (b"id,version,expert,level\na,b,c\n", "line 2: expected 4 cells, found 3"),
        (b'id,version,expert,level\n\n"a,b', "line 3: unexpected end of data"),
        (b"id,version,expert,level\n\xff,b,c,1\n", 'expected UTF-8; save it as "CSV UTF-8"'),
    ],
)
def test_files_that_are_no_form(tmp_path, content, said):
    (tmp_path / "back.csv").write_bytes(content)
    with pytest.raises(FormError) as caught:
        read_forms([tmp_path / "back.csv"], ITEMS, [])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: Input data was truncated"),
        ('\n{"id": "a", "version": "v", "level": "1"}', "line 2: Expected `float | null`, got `str` - at `$.level`"),
        ('{"id": "q000-text-m", "version": "VERSION", "expert": "K", "level": 0.7}', "column level: expected 0, 0.5"),
        ('{"id": "a", "version": "v", "mood": "1"}', "line 1: Object contains unknown field `mood`"),
    ],
)
def test_jsonl_that_is_no_form(tmp_path, content, said):
    (tmp_path / "back.jsonl").write_text(content.replace("VERSION", version(ITEMS[0])))
    with pytest.raises(FormError) as caught:
        read_forms([tmp_path / "back.jsonl"], ITEMS, [])
    assert said in str(caught.value)


def test_files_of_other_kinds_and_none(tmp_path):
    for path, said in ((tmp_path / "a.xlsx", "ends in .csv or .jsonl"), (tmp_path / "a.csv", "No such file")):
        with pytest.raises(FormError, match=said):
            read_forms([path], ITEMS, [])
    with pytest.raises(FormError, match=r"ends in \.csv or \.jsonl"):
        write_form(tmp_path / "a.xlsx", ITEMS)


def test_an_expert_who_says_two_things(tmp_path):
    one = fill(tmp_path / "one.csv", filled(tmp_path, "0"))
    two = fill(tmp_path / "two.csv", filled(tmp_path, "1", expert="kim"))
    with pytest.raises(
        FormError, match=rf"two\.csv, line 2, column level: kim has given {ITEMS[0].id} 0 in .*one\.csv"
    ):
        read_forms([one, two], ITEMS, [])
    earlier = read_forms([one], ITEMS, [])
    assert read_forms([one], ITEMS, earlier) == earlier
    with pytest.raises(FormError, match=r"kim has given q000-text-m 0 in an earlier run; give --replace to change it"):
        read_forms([two], ITEMS, earlier)
    assert [vote.level for vote in read_forms([two], ITEMS, earlier, replace=True)] == [1]


def test_a_cell_longer_than_csv_usually_takes(tmp_path):
    item = vote(0, 0, 0.5, 1, thinking="word " * 40_000)
    write_form(tmp_path / "form.csv", [item])
    csv.field_size_limit(131072)
    assert read_forms([tmp_path / "form.csv"], [item], []) == []


def test_the_command_from_form_to_pairs(tmp_path):
    write_rows(tmp_path / "experts.jsonl", ITEMS[:2])
    run = CliRunner().invoke
    form = tmp_path / "forms" / "open.csv"
    result = run(app, ["review", str(tmp_path), "--out", str(form)])
    assert result.exit_code == 0, result.stderr
    assert f"2 open items in {form}" in result.stderr
    backs: list[str] = []
    for expert, levels in (("Ann", "10"), ("Bo", "1."), ("Cy", "11")):
        rows = [row | {"level": level.strip(".")} for row, level in zip(rows_of(form), levels, strict=True)]
        backs += ["--in", str(fill(tmp_path / f"{expert}.csv", rows))]
        result = run(app, ["review", str(tmp_path), *backs[-2:], "--expert", expert])
        assert result.exit_code == 0, result.stderr
    counts = json.loads(result.stdout)
    assert (counts["decided"], counts["waiting"]) == (1, 1)
    (pair,) = read_rows(tmp_path / "expert_pairs.jsonl", Pair)
    assert (pair.chosen.level, pair.rejected.level) == (1, 0)

    bad = fill(tmp_path / "bad.csv", [rows_of(form)[1] | {"level": "2"}])
    result = run(app, ["review", str(tmp_path), "--in", str(bad), "--expert", "Di"])
    assert result.exit_code == 1
    assert "bad.csv, line 2, column level: expected 0, 0.5 or 1" in result.stderr
    assert len(read_reviews(tmp_path)) == 5

    before = form.read_bytes()
    result = run(app, ["review", str(tmp_path), "--in", str(tmp_path / "Ann.csv"), "--out", str(form)])
    assert result.exit_code == 1
    assert f"--out {form} is there already, and experts may have filled it" in result.stderr
    assert form.read_bytes() == before

    rest = tmp_path / "forms" / "rest.csv"
    result = run(app, ["review", str(tmp_path), "--out", str(rest)])
    assert [row["id"] for row in rows_of(rest)] == [ITEMS[1].id]


def test_a_form_is_whole_or_not_there(tmp_path, monkeypatch):
    def dies(item: object) -> list[str]:
        if item == ITEMS[2]:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(forms, "_cells", dies)
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path / "form.csv", ITEMS)
    assert not (tmp_path / "form.csv").exists()


def test_a_form_is_renewed_where_it_lacks_something_and_never_over_votes(tmp_path):
    form, both = tmp_path / "form.csv", {item.id for item in ITEMS[:2]}
    assert renew_form(form, ITEMS, both) is None
    assert [row["id"] for row in rows_of(form)] == [item.id for item in ITEMS[:2]]
    fill(form, [row | {"comment": "hm"} for row in rows_of(form)])
    before = form.read_bytes()
    assert renew_form(form, ITEMS, {ITEMS[0].id}) is None
    assert form.read_bytes() == before
    (tmp_path / "form.1.csv").write_text("another one", "utf-8")
    other = [vote(0, 0, 0.5, 1, answer="Other text."), *ITEMS[1:]]
    kept = renew_form(form, other, both)
    assert kept == tmp_path / "form.2.csv"
    assert kept.read_bytes() == before
    assert {row["version"] for row in rows_of(form)} == {version(item) for item in other[:2]}
    assert renew_form(form, ITEMS, both) is None  # nothing was filled in
    assert {row["version"] for row in rows_of(form)} == {version(item) for item in ITEMS[:2]}
    form.write_text("no form", "utf-8")
    assert renew_form(form, ITEMS, both) == tmp_path / "form.3.csv"
