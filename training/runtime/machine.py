"""Name the machine and the versions that a measurement depends on."""

import platform
import subprocess
from pathlib import Path

import timm
import torch

from training.words import counted


def device_name(device: torch.device) -> str:
    """Return the kind and the name of a device, to record with measurements."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_cpu_model()}, {counted(torch.get_num_threads(), 'thread')})"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on, and this code's git revision (`unknown` without git)."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "timm": timm.__version__}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found["revision"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["revision"] = "unknown"
    return found
