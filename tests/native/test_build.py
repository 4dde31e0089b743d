"""The build: kept, shared by processes, made again when broken, and a line where it can't be made."""

from pathlib import Path

import pytest

from ssm import cpu
from tests.forked import Forked
from tests.native.builds import check_exactness, find_scan, load

needs_compiler = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
PROCESSOR = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
# Says that it is loaded, and is compiled in a second.
SOURCE = """
#include <cstdio>
struct Loaded { Loaded() { std::fputs("loaded\\n", stderr); } } loaded;
"""


def finish(process):
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return printed.splitlines()


@needs_compiler
def test_processes_share_one_build_which_is_kept_and_mended(tmp_path):
    (tmp_path / "room" / "csrc").mkdir(parents=True)
    (tmp_path / "room" / "csrc" / "greeting.cpp").write_text(SOURCE)

    def start():
        return Forked([str(tmp_path / "room")], load, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))

    first, second = start(), start()
    both = finish(first) + finish(second)
    assert both.count("loaded") == 2
    assert sum("compiling the C++ greeting" in line for line in both) == 1

    assert finish(start()) == ["loaded"]

    (library,) = tmp_path.glob("cache/*/*.so")
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    mended = finish(start())
    assert mended.count("loaded") == 1
    assert any("compiling the C++ greeting" in line for line in mended)


@needs_compiler
@pytest.mark.skipif("avx2" not in PROCESSOR, reason="the processor has no AVX2")
@pytest.mark.parametrize("instructions", ["x86-64", "haswell"])
def test_registers_of_other_processors_give_the_same_numbers(tmp_path, instructions):
    """Of 16 and 32 bytes; this one's own may have 64."""
    lines = finish(Forked([instructions, str(tmp_path)], check_exactness, TORCH_EXTENSIONS_DIR=str(tmp_path)))
    assert any("compiling the C++ scan" in line for line in lines)
    assert any("passed" in line for line in lines)
    assert lines[-1] == "0 failed"


def test_no_compiler_is_one_line(tmp_path):
    lines = finish(Forked([], find_scan, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler"))
    assert lines == ["no C++ compiler (no-such-compiler): apt-get install g++", "False"]


def test_a_compiler_that_fails_is_one_line(tmp_path):
    _, reason, there = finish(Forked([], find_scan, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="false"))
    assert reason.startswith("the C++ scan doesn't compile: ")
    assert there == "False"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    reason, there = finish(Forked([], find_scan, TORCH_EXTENSIONS_DIR=str(tmp_path / "file")))
    assert reason.startswith("the C++ scan can't be kept or loaded: ")
    assert there == "False"
