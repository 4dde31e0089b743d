"""Freed memory: kept, the next step needs no new pages; given back, it no longer counts as in use."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")

STEPS = """
import resource
from training.runtime.process import prepare_process
{prepare}
import torch
from training.runtime.memory import PeakMemory
memory = PeakMemory(torch.device("cpu"))

def step():
    held = [torch.ones(1 << 20) for _ in range(80)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = memory._current_mb()
memory.reset()
print(faults * resource.getpagesize() / 2**20, kept, memory.peak_mb())
"""


def run_steps(prepare):
    """Allocate 80 pieces of 4 MiB in each of two steps.

    Returns:
        MiB of new pages in the second step, MiB in use after it, and the peak after a reset.
    """
    code = STEPS.format(prepare=prepare)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return map(float, out.split())


def test_kept_memory_is_used_again():
    new, *_ = run_steps("prepare_process()")
    new_by_default, *_ = run_steps("")
    assert new < 80 < 240 < new_by_default  # of 320


def test_a_reset_of_the_peak_gives_it_back():
    _, kept, peak = run_steps("prepare_process()")
    assert peak < kept - 250


ASIDE = """
from training.runtime.process import prepare_process
prepare_process()
import torch
from training.runtime.memory import PeakMemory

def step():
    held = [torch.ones(1 << 20) for _ in range(80)]

memory = PeakMemory(torch.device("cpu"))
memory.start_training()
with memory.aside():
    step()
memory.reset()
step()
print(memory.training_mb())
"""


def test_memory_that_was_taken_aside_and_freed_is_the_next_steps():
    out = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, text=True, check=True).stdout
    assert float(out) == pytest.approx(320, abs=40)
