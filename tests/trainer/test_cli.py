"""The command itself, where the extra ``train`` isn't installed."""

from __future__ import annotations

import pytest

from guardtrace_trainer import cli


def failing(name: str):
    def app() -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return app


def test_what_isnt_installed_is_told_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", failing("numpy"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("guardtrace-train: numpy isn't installed: pip install '.[train]'")


def test_a_module_of_our_own_that_is_missing_is_a_bug(monkeypatch):
    monkeypatch.setattr(cli, "app", failing("guardtrace_trainer.gone"))
    with pytest.raises(ModuleNotFoundError):
        cli.main()
