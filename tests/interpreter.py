"""Run tests of Triton's kernels in its interpreter, on a CPU."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def run_interpreted(tests: Path) -> None:
    """Run a file of tests in a process of its own.

    The interpreter must be chosen before Triton is imported, and then nothing can be compiled any more.
    """
    if _fails():
        pytest.skip("Triton's interpreter before 3.7 needs NumPy before 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def _fails() -> bool:
    """Return whether the interpreter is too old for this NumPy: before 3.7 it makes a number of an array of one."""
    numpy_version, triton_version = (tuple(map(int, version(name).split(".")[:2])) for name in ("numpy", "triton"))
    return numpy_version >= (2, 4) and triton_version < (3, 7)
