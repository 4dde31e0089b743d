"""Choosing a backend, and the report on all of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssm
from ssm import __main__ as ssm_report
from ssm import backends, cpu, cuda, reference, triton
from ssm.__main__ import report


@pytest.fixture
def calls(monkeypatch):
    """Which module each operation ran in."""
    seen = []
    for name, module in (("reference", reference), ("cpu", cpu), ("triton", triton), ("cuda", cuda)):
        for op in ("causal_conv1d", "selective_scan"):
            monkeypatch.setattr(module, op, lambda x, *args, _name=name, reverse: (seen.append(_name), x)[1])
        scan = lambda u, *args, _name=name, **options: (seen.append(_name), (u, ()))[1]  # noqa: E731
        monkeypatch.setattr(module, "selective_scan_forward", scan)
    monkeypatch.setattr(cpu, "mixes_in_one", lambda *args: False)  # so that its primitives run
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
    with pytest.raises(ValueError, match="cuda can't run here: no causal-conv1d: pip install"):
        ssm.use_backend("cuda")
    with pytest.raises(ValueError, match="choose from auto, reference, cpu, triton, cuda"):
        ssm.use_backend("tritone")
    assert backends._chosen == "auto"


def test_a_backend_for_another_device(monkeypatch):
    for name, module in (("triton", triton), ("cuda", cuda)):
        monkeypatch.setattr(module, "unavailable", lambda: None)
        with ssm.use_backend(name), pytest.raises(ValueError, match=f"{name} doesn't run on cpu"):
            ssm.pick("cpu")


SHORT = "--batch 1 --length 5 --channels 8 --states 2 --rounds 1".split()


def test_the_report_runs_every_backend():
    command = [sys.executable, "-m", "ssm", *SHORT]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert set(lines) == set(backends.BACKENDS) - {"auto"}
    assert re.fullmatch(r" +reference +cpu +largest error \S+, \S+ ms", lines["reference"])
    assert ("largest error " in lines["cpu"]) == (cpu.unavailable() is None)
    assert f"PyTorch {torch.__version__}" in result.stdout
    assert "time in fp32 at B 1, L 5, D 8, N 2, each backend in turn, median of 1" in result.stdout
    if not torch.cuda.is_available():
        assert "not available: PyTorch finds no CUDA GPU" in lines["cuda"]


def test_the_report_shows_what_fails(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(cpu, "selective_scan", lambda *args, **kwargs: 1 / 0)
    lines = {line.split()[0]: line for line in report({"B": 1, "L": 3, "D": 4, "N": 2}, rounds=1)}
    assert " cpu   fails: ZeroDivisionError" in lines["cpu"]
    assert " ms" in lines["reference"]


def test_backends_are_timed_in_turn_at_the_shape_of_the_flags(monkeypatch, capsys):
    """Each several times, after a round that doesn't count; the median is printed."""
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(ssm_report, "largest_error", lambda *args: 0.0)
    runs, times = [], iter([9.0, 9.0, 0.003, 0.030, 0.001, 0.010, 0.002, 0.020])

    def seconds(name, device, inputs):
        runs.append((name, tuple(inputs[0].shape), inputs[2].shape[1]))
        return next(times)

    monkeypatch.setattr(ssm_report, "seconds", seconds)
    ssm_report.main("--batch 2 --length 7 --channels 6 --states 3 --rounds 3".split())
    assert runs == [("reference", (2, 7, 6), 3), ("cpu", (2, 7, 6), 3)] * 4
    printed = capsys.readouterr().out
    assert re.search(r"reference +cpu .*, 2\.00 ms", printed)
    assert re.search(r"cpu +cpu .*, 20\.00 ms", printed)


@pytest.mark.parametrize("flags", [["--batch", "0"], ["--rounds", "x"], ["--lenght", "3"]])
def test_the_report_refuses_what_it_does_not_know(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        ssm_report.main(flags)
    assert exit_.value.code == 2
    assert flags[0] in capsys.readouterr().err
