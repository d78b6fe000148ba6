"""`make audit` fails for what it finds, and never says that all is well where it couldn't look."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.ports import free_port

pytest.importorskip("detect_secrets", reason="the extra `dev` isn't installed whole")
pytest.importorskip("pip_audit", reason="the extra `dev` isn't installed whole")
ROOT = Path(__file__).parents[2]
TOKEN = "ghp_" + "a1B2c3D4e5F6" * 3


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def osv() -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """A database, and what it knows of packages by name."""
    known: dict[str, list[Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps({"vulns": known[name]} if (name := asked["package"]["name"]) in known else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query", known
        server.shutdown()


def test_a_known_vulnerability_fails_it(audit, osv, capsys):
    url, known = osv
    affected = {"package": {"name": "uvicorn", "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}]}  # fmt: skip
    known["uvicorn"] = [{"id": "PYSEC-2099-1", "aliases": ["CVE-2099-1"], "affected": [affected], "modified": "2099-01-01T00:00:00Z", "published": "2099-01-01T00:00:00Z"}]  # fmt: skip
    assert audit.vulnerabilities(url, required=False) == 1
    said = capsys.readouterr().out
    assert "uvicorn" in said
    assert "PYSEC-2099-1, mended in 9.9" in said
    audit.ACCEPTED["CVE-2099-1"] = "we are no such server"
    assert audit.vulnerabilities(url, required=False) == 0
    assert "vulnerabilities: 0 known in " in capsys.readouterr().out


@pytest.mark.parametrize("required", [False, True])
def test_a_database_that_cant_be_reached_is_never_a_pass(audit, capsys, required):
    assert audit.vulnerabilities(f"http://127.0.0.1:{free_port()}/v1/query", required) == int(required)
    said = capsys.readouterr().out
    assert "NOT CHECKED" in said
    assert "0 known" not in said


def test_a_new_secret_fails_it_and_an_accepted_one_doesnt(audit, tmp_path, capsys):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "plain.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert audit.secrets(tmp_path, accept=True) == 0
    (tmp_path / "settings.py").write_text(f"\n\ntoken = '{TOKEN}'\n")
    assert audit.secrets(tmp_path, accept=False) == 0  # not tracked, so not committed
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert audit.secrets(tmp_path, accept=False) == 1
    said = capsys.readouterr().out
    assert "settings.py:3: GitHub Token" in said
    assert TOKEN not in said
    assert audit.secrets(tmp_path, accept=True) == 0
    assert TOKEN not in (tmp_path / audit.BASELINE).read_text()
    (tmp_path / "settings.py").write_text(f"\n\n\n\ntoken = '{TOKEN}'\n")  # moved
    assert audit.secrets(tmp_path, accept=False) == 0


def test_the_audit_of_ci_is_this_one():
    jobs = (ROOT / ".ci" / "run").read_text().splitlines()
    budgets = [int(line.split()[2]) for line in jobs if line.startswith("job ")]
    assert "job audit 1 make audit" in jobs
    assert sum(budgets) <= 45
