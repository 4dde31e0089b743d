"""Say whether kernels in Triton can run here.

Triton comes with PyTorch's CUDA wheels, and compiles a kernel when it is first used. TRITON_INTERPRET=1 in the
environment runs kernels on a CPU instead, slowly, for tests.
"""

import os
import shutil
import sysconfig
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"  # where kernels run
MAX_IMAGES = 65_535  # CUDA's limit for all axes of a grid but the first
OLDEST = (3, 3)  # the first version whose kernels can build tuples


def check_images(count: int) -> None:
    """Raise ValueError if a batch has more images than a GPU starts programs along one axis of a kernel's grid."""
    if count > MAX_IMAGES:
        raise ValueError(f"the Triton kernels take at most {MAX_IMAGES:,} images at once, not {count:,}")


@cache
def unavailable() -> str | None:
    """Return in one line why kernels can't run here, None if they can."""
    if find_spec("triton") is None:
        return "no Triton, which comes with PyTorch's CUDA wheels: pip install triton"
    try:
        found = import_module("triton").__version__  # packages of several names bring the module
        old = tuple(map(int, found.split(".")[:2])) < OLDEST
    except Exception as error:  # whatever is broken in it
        return f"Triton can't be imported ({error})"
    if old:
        return f"Triton {found} is too old: PyTorch 2.7 brings Triton {'.'.join(map(str, OLDEST))}"
    return None if INTERPRETED else _no_gpu() or _no_compiler()


def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    if torch.version.cuda and torch.cuda.get_device_capability() < (7, 0):
        return f"Triton needs compute capability 7.0, and {torch.cuda.get_device_name()} is older"
    return None


def _no_compiler() -> str | None:
    """Return what is missing to compile C, None if nothing: Triton compiles the few lines that start a kernel."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler, with which Triton starts kernels: apt-get install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h, with which Triton starts kernels: apt-get install python3-dev"
    return None
