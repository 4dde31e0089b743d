"""Choosing a backend, and the report on all of them."""

import subprocess
import sys

import pytest
import torch

import ssm
from ssm import backends, cpu, cuda, reference, triton
from ssm.__main__ import describe


@pytest.fixture
def calls(monkeypatch):
    """Which module each operation ran in."""
    seen = []
    for name, module in (("reference", reference), ("cpu", cpu), ("triton", triton), ("cuda", cuda)):
        for op in ("causal_conv1d", "selective_scan"):
            monkeypatch.setattr(module, op, lambda x, *args, _name=name, reverse: (seen.append(_name), x)[1])
    return seen


def test_a_block_and_a_setter(calls, monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    mixer, hidden = ssm.BiMamba(4, bidirectional=False), torch.randn(1, 3, 4)
    mixer(hidden)
    assert calls == ["cpu", "cpu"]
    with ssm.use_backend("reference"):
        mixer(hidden)
        assert ssm.pick("cpu") == ("reference", "as asked for")
    assert calls[2:] == ["reference", "reference"]
    ssm.use_backend("reference")
    mixer(hidden)
    assert calls[4:] == ["reference", "reference"]
    ssm.use_backend("auto")
    mixer(hidden)
    assert calls[6:] == ["cpu", "cpu"]


@pytest.fixture(autouse=True)
def restore():
    yield
    ssm.use_backend("auto")


def test_auto_falls_back_and_says_why(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: "no C++ compiler (c++): apt-get install g++")
    monkeypatch.setattr(triton, "unavailable", lambda: "no Triton")
    monkeypatch.setattr(cuda, "unavailable", lambda: "no causal-conv1d")
    assert ssm.pick("cpu") == ("reference", "no C++ compiler (c++): apt-get install g++")
    assert ssm.pick("cuda") == ("reference", "no Triton")
    assert ssm.pick("mps").name == "reference"
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    assert ssm.pick("cuda") == ("cuda", "the fastest here")


def test_what_is_missing_is_an_error_that_says_what_mends_it(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda: f"no causal-conv1d: {cuda.INSTALL}")
    with pytest.raises(
        ValueError, match="cuda can't run here: no causal-conv1d: MAMBA_KEEP_CUDA_BUILD=TRUE pip install"
    ):
        ssm.use_backend("cuda")
    with pytest.raises(ValueError, match="choose from auto, reference, cpu, triton, cuda"):
        ssm.use_backend("tritone")
    assert backends._chosen == "auto"


def test_a_backend_for_another_device(monkeypatch):
    for name, module in (("triton", triton), ("cuda", cuda)):
        monkeypatch.setattr(module, "unavailable", lambda: None)
        with ssm.use_backend(name), pytest.raises(ValueError, match=f"{name} doesn't run on cpu"):
            ssm.pick("cpu")


def test_the_report_runs_every_backend():
    result = subprocess.run([sys.executable, "-m", "ssm"], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert set(lines) == {"reference", "cpu", "triton", "cuda"}
    assert "works: largest error" in lines["reference"]
    assert ("works: " in lines["cpu"]) == (cpu.unavailable() is None)
    assert f"PyTorch {torch.__version__}" in result.stdout
    if not torch.cuda.is_available():
        assert "not available: PyTorch finds no CUDA GPU" in lines["cuda"]


def test_the_report_shows_what_fails(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(cpu, "selective_scan", lambda *args, **kwargs: 1 / 0)
    assert describe("cpu").startswith("fails: ZeroDivisionError")
