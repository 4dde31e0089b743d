"""Peak memory: it follows what is allocated, and a reset forgets it."""

import sys

import pytest
import torch

from training.runtime.memory import MB, PeakMemory

linux = pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are reset on Linux only")


def touch(mb):
    """Allocate and fill that much, then free it."""
    torch.ones(mb * MB, dtype=torch.uint8)


@linux
def test_peak_sees_what_is_gone_and_a_reset_forgets_it():
    memory = PeakMemory(torch.device("cpu"))
    memory.start_training()
    memory.reset()  # what earlier tests took and gave back is still in the peak
    quiet = memory.peak_mb()
    touch(300)
    assert memory.peak_mb() == pytest.approx(quiet + 300, abs=40)
    assert memory.training_mb() == pytest.approx(300, abs=40)
    memory.start_training()  # which returns what lies free: in a process that freed much, allocators keep it
    memory.reset()
    assert memory.peak_mb() < quiet + 100
    touch(100)
    assert memory.training_mb() == pytest.approx(100, abs=40)


def test_without_a_reset_the_peak_is_that_of_the_run(monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", lambda *args: (_ for _ in ()).throw(PermissionError))
    memory = PeakMemory(torch.device("cpu"))
    assert not memory.resets
    memory.start_training()
    touch(50)
    peak = memory.peak_mb()
    memory.reset()
    assert memory.peak_mb() >= peak > 0
    assert memory.training_mb() >= 0


def test_what_steps_left_is_theirs():
    """A run that goes on has its optimizer's averages in memory before its first step."""
    memory = PeakMemory(torch.device("cpu"))
    memory.start_training(held_mb=500)
    memory.reset()
    assert memory.training_mb() == pytest.approx(500, abs=40)
