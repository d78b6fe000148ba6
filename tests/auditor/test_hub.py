"""A hub that can't be reached is asked once, not for each file of a checkpoint and each time over again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `local` isn't installed")

from huggingface_hub import constants

from guardtrace_proxy.auditor.checkpoint import load_checkpoint
from guardtrace_proxy.auditor.hub import hub_asked_once
from guardtrace_proxy.auditor.protocol import AuditorSettingsError


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there, and whoever waits to ask again fails."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"it waits for {seconds} s")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", sleep)


def test_a_misspelt_folder_is_told_at_once() -> None:
    with pytest.raises(AuditorSettingsError, match="there is no such folder here; taken for a hub id, it isn't in the"):
        load_checkpoint("nosuch/x")


@pytest.mark.parametrize("model", ["./nosuch", "../nosuch/x/y", "~/nosuch"])
def test_what_can_only_be_a_folder_is_told_as_one(model: str) -> None:
    with pytest.raises(AuditorSettingsError, match="there is no such folder"):
        load_checkpoint(model)


def test_without_a_hub_its_cache_counts_alone(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--some--guard" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    with hub_asked_once("some/guard"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_folder_needs_no_hub(tmp_path: Path) -> None:
    (tmp_path / "some" / "guard").mkdir(parents=True)
    with hub_asked_once("some/guard"):
        assert not constants.HF_HUB_OFFLINE
