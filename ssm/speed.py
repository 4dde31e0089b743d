"""Remember which backend is fastest on this GPU: `python -m ssm` measures it, the cache directory keeps it."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from native import cache_directory

PACKAGES = ("triton", "mamba-ssm", "causal-conv1d")


def remember(milliseconds: dict[str, float]) -> Path:
    """Save how long each backend takes on this GPU, with the versions that were measured; return the file."""
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_machine() | {"milliseconds": milliseconds}, indent=2) + "\n")
    _remembered.cache_clear()
    return path


def fastest(names: list[str]) -> tuple[str, str]:
    """Return the fastest of these backends and why; the first if the installed versions were not measured."""
    times = {name: ms for name, ms in _remembered().items() if name in names}
    if not times:
        return names[0], "needs PyTorch alone; python -m ssm measures whether another is faster"
    best = min(times, key=times.get)
    others = [f"{name} {f'took {times[name]:.2f}' if name in times else 'failed'}" for name in names if name != best]
    return best, f"{times[best]:.2f} ms as python -m ssm measured, where {', '.join(others)}"


@cache
def _remembered() -> dict[str, float]:
    try:
        kept = json.loads(_file().read_text())
        return kept["milliseconds"] if kept | _machine() == kept else {}
    except (OSError, ValueError, KeyError, TypeError):  # nothing was measured, or the file is not ours
        return {}


def _file() -> Path:
    return cache_directory() / "vim_scan_speed.json"


def _machine() -> dict:
    """Return what a measurement is valid for: the GPU and the versions of the packages."""
    versions = {"torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "versions": versions}
