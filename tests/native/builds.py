"""What processes of test_build.py run: they must not import a module that has the scan compiled when it is imported."""

from pathlib import Path

import pytest
import torch

from native import build, load_library
from ssm import cpu


def load(room):
    load_library(Path(room), "greeting")


def find_scan():
    print(cpu.unavailable())
    print(hasattr(torch.ops.vim, "selective_scan"))


def check_exactness(instructions, room):
    """Run the tests of exactness with a scan compiled for such a processor, in one file that reads headers once."""
    build.FLAGS = ["-O1", f"-march={instructions}", "-fopenmp"]
    sources = Path(room) / "csrc"
    sources.mkdir()
    files = sorted((Path(cpu.__file__).parent / "csrc").glob("*.cpp"))
    (sources / "all.cpp").write_text("".join(f'#include "{file}"\n' for file in files))
    cpu.load_library = lambda _, what: load_library(Path(room), what)
    assert cpu.unavailable() is None
    code = pytest.main(["-q", "-p", "no:cacheprovider", "tests/ssm/test_cpu.py", "-k", "exact or finite"])
    print(int(code), "failed")
