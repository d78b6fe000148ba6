"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("uvicorn", "uvloop", "httptools", "httpx", "aiohttp", "msgspec", "starlette")
AUDITOR_PACKAGES = ("torch", "transformers", "tokenizers", "vllm")


def facts(nginx: str | None = None, packages: Sequence[str] = PACKAGES) -> dict[str, str | float]:
    """The machine, the interpreter and the versions of what is installed."""
    found: dict[str, str | float] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    binary = shutil.which(nginx or "nginx")
    if binary is not None and packages is PACKAGES:
        said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False).stderr
        found["nginx"] = said.strip().rpartition("/")[2] or "unknown"
    return found


def _cpu_model() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        model = None
    return model.group(1) if model else platform.processor() or platform.machine()
