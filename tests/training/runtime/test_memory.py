"""Peak memory: it follows what is allocated, and a reset forgets it."""

import sys

import pytest
import torch

import models_mamba
from training.runtime.memory import MB, PeakMemory, kept_mib

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


@linux
def test_what_is_left_aside_is_not_of_the_training():
    memory = PeakMemory(torch.device("cpu"))
    memory.start_training()
    with memory.aside():
        held = torch.ones(200 * MB, dtype=torch.uint8)
    memory.reset()
    touch(50)
    assert memory.training_mb() == pytest.approx(50, abs=40)
    del held


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


def test_what_autograd_keeps():
    """Exactly, for a product: the input and the output's square root, but not the weight."""
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.grad_checkpointing = False
    x = torch.randn(4096, 64)
    assert kept_mib(layer, lambda: layer(x).sum()) == 1
    assert kept_mib(layer, lambda: layer(x).sigmoid().sum()) == 2


def test_recomputed_layers_keep_their_inputs_alone():
    model = models_mamba.VisionMamba(img_size=8, patch_size=2, embed_dim=48, depth=6)
    images = torch.randn(2, 3, 8, 8)
    whole = kept_mib(model, lambda: model(images).sum())
    model.set_grad_checkpointing(True)
    inputs = 6 * 2 * 2 * 17 * 48 * 4 / MB  # layers, hidden and residual, images, tokens, channels, bytes
    assert inputs < kept_mib(model, lambda: model(images).sum()) < inputs + 0.1 < whole
