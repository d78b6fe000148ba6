"""What docs/training-annotation.md says: its settings load, and its commands run one after another."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from guardtrace_trainer.annotation.commands import app
from tests.docs.pages import ROOT, blocks, commands
from tests.trainer.corpora import write_requests
from tests.trainer.scripted import Said, Scripted

LEVELS = {"gemma": "0", "Mistral": "0.5", "Qwen": "1"}
PAGE = ROOT / "docs" / "training-annotation.md"


def say(body: dict[str, Any], number: int) -> Said:
    if body["messages"][0]["role"] == "user":
        return Said("Lift the lid.", "They want to open a box, so I tell them how.")
    level = next(level for name, level in LEVELS.items() if name in body["model"])
    return Said(f"“Analysis”: They want to open a box and are told how.\n“Judgment”: {level}")


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_requests(Path("corpus"), 3)
    texts = [block.text for block in blocks("yaml") if block.page == PAGE]
    lines = [line for block in blocks("bash") if block.page == PAGE for line in commands(block.text)]
    with Scripted(say) as server:
        for text in texts:
            name = text.splitlines()[0].removeprefix("# ")
            Path(name).write_text(re.sub(r"http://127\.0\.0\.1:\d+/v1", server.base_url, text))
        for line in lines:
            program, group, *arguments = shlex.split(line)
            assert (program, group) == ("guardtrace-train", "data")
            if "ann.csv" in arguments:
                shutil.copyfile("open.csv", "ann.csv")
            result = CliRunner().invoke(app, arguments, input="q\n")
            assert result.exit_code == 0, f"{line}: {result.stderr}"
    assert len(lines) == 6
    assert len(server.bodies) == 3 * 3 + 9 * 3
    assert len(Path("corpus/experts.jsonl").read_text().splitlines()) == 9
