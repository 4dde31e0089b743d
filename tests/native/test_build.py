"""The build: kept, shared by processes, made again when broken, and a line where it can't be made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssm import cpu

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
PROGRAM = "from ssm import cpu; print(cpu.unavailable()); import torch; print(hasattr(torch.ops.vim, 'selective_scan'))"
QUICK = "from native import build; build.FLAGS = ['-O0', '-fopenmp']; "  # where only the keeping of a build matters
PROCESSOR = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
EXACTNESS = """
import pytest
from native import build
from ssm import cpu
build.FLAGS = ["-O3", "-march={}", "-fopenmp"]
assert cpu.unavailable() is None
code = pytest.main(["-q", "tests/ssm/test_cpu.py", "-k", "exact or finite"])
print(int(code), "failed")
"""


def start(cache, program=PROGRAM, **environment):
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(cache)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out.splitlines(), err


@needs_compiler
def test_processes_share_one_build_which_is_kept_and_mended(tmp_path):
    first, second = (start(tmp_path, QUICK + PROGRAM) for _ in range(2))
    outputs = [finish(first), finish(second)]
    assert [lines for lines, _ in outputs] == [["None", "True"]] * 2
    assert sum("compiling the C++ scan" in err for _, err in outputs) == 1

    lines, err = finish(start(tmp_path, QUICK + PROGRAM))
    assert lines == ["None", "True"]
    assert err == ""

    (library,) = tmp_path.glob("*/*.so")
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    lines, err = finish(start(tmp_path, QUICK + PROGRAM))
    assert lines == ["None", "True"]
    assert "compiling the C++ scan" in err


@needs_compiler
@pytest.mark.skipif("avx2" not in PROCESSOR, reason="the processor has no AVX2")
@pytest.mark.parametrize("instructions", ["x86-64", "haswell"])
def test_registers_of_other_processors_give_the_same_numbers(tmp_path, instructions):
    """Of 16 and 32 bytes; this one's own may have 64."""
    lines, err = finish(start(tmp_path, EXACTNESS.format(instructions)))
    assert "compiling the C++ scan" in err
    assert lines[-1].startswith("0 failed")


def test_no_compiler_is_one_line(tmp_path):
    lines, err = finish(start(tmp_path, CXX="no-such-compiler"))
    assert lines[0] == "no C++ compiler (no-such-compiler): apt-get install g++"
    assert err == ""


def test_a_compiler_that_fails_is_one_line(tmp_path):
    lines, _ = finish(start(tmp_path, CXX="false"))
    assert lines[0].startswith("the C++ scan doesn't compile: ")
    assert lines[1] == "False"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    lines, _ = finish(start(tmp_path / "file"))
    assert lines[0].startswith("the C++ scan can't be kept or loaded: ")
