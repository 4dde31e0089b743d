"""Triton's kernels: run in its interpreter in a process of their own, and what stands in their way elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from native import kernels
from ssm.triton import launch
from tests.interpreter import run_interpreted

pytestmark = pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")


def test_in_the_interpreter():
    run_interpreted(Path(__file__).with_name("interpreted_triton.py"))


def unavailable(
    monkeypatch, gpu=True, capability=(9, 0), spec=True, version="3.6.0", compiler="/usr/bin/gcc", include="/"
):
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec or None)
    monkeypatch.setattr(kernels, "import_module", lambda name: SimpleNamespace(__version__=version))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(kernels.shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda name: str(include))
    return kernels.unavailable.__wrapped__()


def test_reasons_not_to_be_available(monkeypatch, tmp_path):
    assert "no Triton, which comes with PyTorch's CUDA wheels" in unavailable(monkeypatch, spec=False)
    assert unavailable(monkeypatch, version="3.2.1") == "Triton 3.2.1 is too old: PyTorch 2.7 brings Triton 3.3"
    assert unavailable(monkeypatch, version=None).startswith("Triton can't be imported (")
    assert unavailable(monkeypatch, gpu=False) == "PyTorch finds no CUDA GPU"
    assert "Old GPU is older" in unavailable(monkeypatch, capability=(6, 1))
    assert "no C compiler, with which Triton starts kernels" in unavailable(monkeypatch, compiler=None)
    assert "no Python.h" in unavailable(monkeypatch, include=tmp_path)
    (tmp_path / "Python.h").touch()
    assert unavailable(monkeypatch, include=tmp_path) is None


def test_more_images_than_a_grid_has_room_for():
    kernels.check_images(65_535)
    with pytest.raises(ValueError, match="at most 65,535 images at once, not 65,536"):
        launch.causal_conv1d(torch.zeros(65_536, 1, 2), torch.zeros(2, 4), torch.zeros(2), False)
    x, BC, channels = torch.zeros(65_536, 1, 2), torch.zeros(65_536, 1, 4), torch.zeros(2)
    with pytest.raises(ValueError, match="at most 65,535 images at once, not 65,536"):
        launch.selective_scan(x, x, torch.zeros(2, 4), BC, BC, channels, x, channels, False, x, False)


def test_programs_are_narrower_where_the_gpu_would_be_idle():
    schedulers = 4 * 132
    assert launch.block_width(128, 384, schedulers) == 32
    assert launch.block_width(8, 384, schedulers) == 8
    assert launch.block_width(1, 1, schedulers) == 8
    for batch in range(1, 129):
        block = launch.block_width(batch, 384, schedulers)
        assert block == 32 or batch * 384 / block <= 1.5 * schedulers
