"""YAML is read with line numbers and without surprises."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardtrace_proxy.policy.yaml_file import MAX_FILE_BYTES, BadYaml, read_yaml


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, "utf-8")
    return path


def test_lines_of_nested_keys(tmp_path):
    file = read_yaml(write(tmp_path, "a:\n  b: 1\n  c:\n    - x\n    - d: 2\n"))
    assert file.content == {"a": {"b": 1, "c": ["x", {"d": 2}]}}
    assert (file.line("a"), file.line("a.b"), file.line("a.c.1.d")) == (1, 2, 5)
    assert file.line("a.unheard.of") == 1
    assert file.line("z") is None


def test_an_empty_file_has_no_keys(tmp_path):
    assert read_yaml(write(tmp_path, "# nothing\n")).content == {}


@pytest.mark.parametrize(
    "value",
    [
        "0500",
        "-0500",
        "00",
        "0_1",
        "1:00",
        "1:00:00",
        "-1:30",
        "1:00.5",
        "0x1F",
        "0b11",
        "!!int '0500'",
        "!!int '1:00'",
    ],
)
def test_a_number_that_yaml_reads_as_another_one_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(BadYaml) as caught:
        read_yaml(write(tmp_path, f"a:\n  b: [{value}]\n"))
    assert "file.yaml:2: a.b.0: write numbers in decimal, without a leading zero or colons" in str(caught.value)


def test_decimal_numbers_are_what_they_seem(tmp_path: Path) -> None:
    text = (
        "a: [0, -0, 500, +500, -500, 33_554_432, 0.5, 1_000.5, 1.0e+3, !!int '500', 10]\nb: ['0500', '1:00', 0 500]\n"
    )
    assert read_yaml(write(tmp_path, text)).content == {
        "a": [0, 0, 500, 500, -500, 33_554_432, 0.5, 1000.5, 1000.0, 500, 10],
        "b": ["0500", "1:00", "0 500"],
    }


TAGS = [
    "bool",
    "int",
    "float",
    "null",
    "str",
    "timestamp",
    "binary",
    "map",
    "seq",
    "set",
    "omap",
    "pairs",
    "merge",
    "no",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_value_that_isnt_what_its_tag_says_is_told_with_its_place(tmp_path: Path, tag: str) -> None:
    for value in ("''", "foo", "'-'", "_", ".", "1", "2026-99-99", "[]", "[1, [2]]", "{a: {b: 1}}", "'[]'"):
        try:
            read_yaml(write(tmp_path, f"a:\n  b: !!{tag} {value}\n"))
        except BadYaml as error:
            assert (error.problem.line, error.problem.key) == (2, "a.b")


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(), "aliases included"),
        ("a: &a {b: *a}\n", "aliases included"),
        ("base: &b {x: 1}\na: {<<: *b}\n", "merge keys"),
        ("? [a, b]\n: 1\n", "plain key"),
        ("a: !!python/object/apply:os.system [true]\n", ""),
        ("a: !!python/name:os.system x\n", "can't be read"),
        ("a: 1\n---\nb: 2\n", "document"),
        ("a: .inf\n", "no number"),
        ("a: 2026-99-99\n", "can't be read"),
        ("a: !!bool maybe\n", "file.yaml:1: a: a value that can't be read"),
        ("a: !!float ''\n", "file.yaml:1: a: a value that can't be read"),
        ("a: !!timestamp foo\n", "file.yaml:1: a: a value that can't be read"),
        ("[" * 3000, ""),
        ("a: '" + "x" * MAX_FILE_BYTES + "'", "larger than"),
    ],
    ids=[
        "bomb",
        "self",
        "merge",
        "key",
        "call",
        "name",
        "documents",
        "infinity",
        "date",
        "bool",
        "float",
        "time",
        "deep",
        "large",
    ],
)
def test_hostile_files_are_refused(tmp_path, text, said):
    with pytest.raises(BadYaml) as caught:
        read_yaml(write(tmp_path, text))
    assert said in str(caught.value)
