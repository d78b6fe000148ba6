"""Where a stage's base is."""

from __future__ import annotations

import pytest

from guardtrace_trainer.stages.folders import folder_of
from guardtrace_trainer.stages.settings import StageError


def test_a_misspelt_built_in_is_no_question_for_the_hub():
    with pytest.raises(StageError, match="there is no builtin:nanoo: the only built-in is builtin:nano"):
        folder_of("builtin:nanoo")


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path):
    with pytest.raises(StageError, match=r"there is no config\.json"):
        folder_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert folder_of(str(tmp_path)) == tmp_path
