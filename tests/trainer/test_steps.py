"""Steps: passed over when done, taken up when interrupted, refused where something else stands."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from guardtrace_trainer.rows import Query, read_rows
from guardtrace_trainer.steps import (
    Journal,
    Manifest,
    Step,
    StepError,
    file_hash,
    forget,
    is_begun,
    mark_due,
)


def query(id: str, text: str = "?") -> Query:
    return Query(id=id, text=text, source="s", split="train")


@pytest.fixture
def given(tmp_path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("one")
    return path


def step(given: Path, again: bool = False, **settings: object) -> Step:
    return Step(given.parent, "copy", inputs=[given], settings=settings, again=again)


def finished(given: Path, **settings: object) -> Step:
    done = step(given, **settings)
    done.finish({"out.jsonl": [query("a"), query("b")]}, rows=2)
    return done


def test_a_finished_step_is_passed_over_and_says_what_it_made(given):
    finished(given, seed=1)
    again = step(given, seed=1)
    assert again.done
    assert not again.resumed
    manifest = msgspec.json.decode((given.parent / "copy.manifest.json").read_bytes(), type=Manifest)
    assert manifest == again.manifest
    assert manifest.counts == {"rows": 2}
    assert manifest.inputs == {"in.txt": file_hash(given)}
    assert manifest.outputs == {"out.jsonl": file_hash(given.parent / "out.jsonl")}
    assert "python" in manifest.versions
    assert manifest.seconds is not None


def test_an_interrupted_step_goes_on(given):
    first = step(given)
    with first.journal("rows", Query) as journal:
        journal.add(query("a"))
    second = step(given)
    assert (second.done, second.resumed) == (False, True)
    with second.journal("rows", Query) as journal:
        assert list(journal.rows) == ["a"]
    second.finish({"out.jsonl": journal.rows.values()})
    assert step(given).done
    assert not list(given.parent.glob("*.journal"))


def test_a_step_that_is_gone_on_with_leaves_its_manifest_alone(given):
    """Of several processes of one step all but the first find it begun; their writes would race."""
    path = step(given, again=True).manifest_path
    before = path.stat()
    assert step(given).resumed
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_outputs_that_were_touched_are_made_again(given):
    finished(given)
    (given.parent / "out.jsonl").write_text("")
    touched = step(given)
    assert (touched.done, touched.resumed) == (False, True)


@pytest.mark.parametrize("done", [True, False])
def test_other_settings_are_refused_and_named(given, done):
    finished(given, seed=1, kind="x") if done else step(given, seed=1, kind="x")
    with pytest.raises(StepError, match=r"copy was begun or done with other settings \(seed, size\); give --again"):
        step(given, seed=2, kind="x", size=3)


def test_other_inputs_are_refused_and_named(given):
    finished(given)
    given.write_text("two")
    with pytest.raises(StepError, match=r"other inputs \(in\.txt\)"):
        step(given)


def test_files_that_nothing_depends_on_may_stand_in_an_earlier_manifest(given):
    beside = given.with_name("calibration.json")
    beside.write_text("1")
    made = Step(given.parent, "copy", inputs=[given, beside])
    made.made([beside])
    beside.write_text("2")
    assert Step(given.parent, "copy", inputs=[given], unheeded=["calibration.json"]).done
    with pytest.raises(StepError, match=r"other inputs \(calibration\.json\)"):
        step(given)


def test_again_begins_anew(given):
    with step(given, seed=1).journal("rows", Query) as journal:
        journal.add(query("a"))
    anew = step(given, again=True, seed=2)
    assert (anew.done, anew.resumed) == (False, False)
    with anew.journal("rows", Query) as journal:
        assert not journal.rows


def test_an_again_that_was_interrupted_goes_on(given):
    finished(given, seed=1)
    for resumed, rows in ((False, ["a"]), (True, ["a", "b"])):
        anew = step(given, again=True, seed=1)
        assert (anew.done, anew.resumed) == (False, resumed)
        with anew.journal("rows", Query) as journal:
            journal.add(query(rows[-1]))
            assert list(journal.rows) == rows
    anew.finish({"out.jsonl": journal.rows.values()})
    assert step(given, seed=1).done
    again = step(given, again=True, seed=1)
    assert (again.done, again.resumed) == (False, False)


def test_an_again_of_other_work_begins_anew(given):
    with step(given, again=True, seed=1).journal("rows", Query) as journal:
        journal.add(query("a"))
    assert not step(given, again=True, seed=2).resumed
    assert not list(given.parent.glob("*.journal"))


def test_an_interrupted_again_may_be_gone_on_with_without_it(given):
    step(given, again=True)
    assert step(given).resumed
    assert step(given, again=True).resumed


def test_what_is_due_is_made_again_once(given):
    path = finished(given, seed=1).manifest_path
    mark_due(path)
    assert not is_begun(path)
    anew = step(given, seed=2)
    assert (anew.done, anew.resumed) == (False, False)
    assert is_begun(path)
    assert step(given, seed=2).resumed
    with pytest.raises(StepError, match="other settings"):
        step(given, seed=1)
    path.write_bytes(b"{")
    mark_due(path)
    assert not step(given, seed=1).resumed


def test_what_is_cleared_is_gone_before_the_manifest_says_that_it_began(given):
    stopped = [KeyboardInterrupt, StepError]

    def clear() -> None:
        if stopped:
            raise stopped.pop()

    finished(given)
    for kind in (StepError, KeyboardInterrupt):
        with pytest.raises(kind):
            Step(given.parent, "copy", inputs=[given], again=True, clear=clear)
        assert step(given).done
    assert not Step(given.parent, "copy", inputs=[given], again=True, clear=clear).resumed
    assert Step(given.parent, "copy", inputs=[given], again=True, clear=pytest.fail).resumed


def test_an_input_that_is_missing(tmp_path):
    with pytest.raises(StepError, match=r"nowhere\.jsonl: can't be read \(No such file or directory\); which step"):
        Step(tmp_path, "copy", inputs=[tmp_path / "nowhere.jsonl"])


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"step": "\xff"}', b'{"step": 3}'])
def test_a_manifest_that_is_none(given, content):
    (given.parent / "copy.manifest.json").write_bytes(content)
    with pytest.raises(StepError, match="is no manifest"):
        step(given)


def test_an_input_elsewhere_has_one_name_from_everywhere(tmp_path, monkeypatch):
    corpus, given = tmp_path / "corpus", tmp_path / "in.txt"
    given.write_text("x")
    (corpus / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    Step(Path("corpus"), "copy", inputs=[Path("in.txt")]).finish({})
    monkeypatch.chdir(corpus / "deep")
    assert Step(Path(".."), "copy", inputs=[Path("../../in.txt")]).done
    assert Step(corpus, "copy", inputs=[given]).done


def test_outputs_that_are_folders(given):
    made = step(given)
    (given.parent / "images" / "more").mkdir(parents=True)
    (given.parent / "images" / "more" / "a.png").write_bytes(b"1")
    made.made([given.parent / "images"], images=1)
    assert list(made.manifest.outputs) == ["images/more/a.png"]
    assert step(given).done
    (given.parent / "images" / "more" / "a.png").write_bytes(b"2")
    assert not step(given).done


def test_a_line_that_a_crash_tore_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "j"
    with Journal(path, Query) as journal:
        journal.add(query("a", "line one\r\nline two\u2028"))
        journal.add(query("b"))
    whole = path.read_bytes()
    for torn in range(len(whole) - 1, whole.index(b"\n"), -1):
        path.write_bytes(whole[:torn])
        with Journal(path, Query) as journal:
            assert list(journal.rows) == ["a"]
            journal.add(query("b"))
        assert path.read_bytes() == whole


def test_a_torn_first_line(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"id": "a", "te')
    with Journal(path, Query) as journal:
        assert not journal.rows
        journal.add(query("b"))
    assert [row.id for row in read_rows(path, Query)] == ["b"]


def test_the_last_row_of_an_id_counts(tmp_path):
    for text in ("one", "two"):
        with Journal(tmp_path / "j", Query) as journal:
            journal.add(query("a", text))
    with Journal(tmp_path / "j", Query) as journal:
        assert journal.rows["a"].text == "two"
        assert "a" in journal


@pytest.mark.parametrize("bad", [b"nonsense", b'{"id": "\xff"}', b'{"id": "a"}', b"[" * 100_000])
def test_a_broken_line_within_is_no_tear(tmp_path, bad):
    with Journal(tmp_path / "j", Query) as journal:
        journal.add(query("a"))
    with (tmp_path / "j").open("ab") as file:
        file.write(bad + b"\n")
    with pytest.raises(StepError, match=r"j, line 2: "):
        Journal(tmp_path / "j", Query).__enter__()


@pytest.mark.parametrize("use", [lambda path: Journal(path, Query).__enter__(), forget])
def test_two_processes_dont_write_one_journal(tmp_path, use):
    with Journal(tmp_path / "j", Query) as journal:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                use(tmp_path / "j")
                os.write(writing, b"opened")
            except StepError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        said = os.read(reading, 1000).decode()
        journal.add(query("b"))
    assert "another process is at this step" in said
    assert [row.id for row in read_rows(tmp_path / "j", Query)] == ["b"]
    with Journal(tmp_path / "j", Query) as journal:
        journal.add(query("a"))
