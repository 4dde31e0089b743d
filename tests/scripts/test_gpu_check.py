"""The check of a GPU, tried on a CPU: its parts, what they leave, and its answer where something fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from native import kernels
from tests.fashion import write_fashion

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()


def check(tmp_path, *words, **environment):
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *words]
    environment = os.environ | {"OUTPUT": str(tmp_path / "out"), "PYTHON": sys.executable} | environment
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.fixture
def fashion(tmp_path):
    return write_fashion(tmp_path / "fashion", train=64, test=16)


@pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")
def test_the_scan_in_the_interpreter(tmp_path):
    result = check(tmp_path, "--interpret", "scan")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "out" / "scan.json").read_text())["scan"]
    assert {name.rsplit(", ", 1)[1] for name in rows} >= {"triton", "reference"}
    assert all(row["ms"] > 0 for row in rows.values())
    assert "| scan    | passed" in (tmp_path / "out" / "summary.md").read_text()


def test_training_steps_and_a_short_training(tmp_path, fashion):
    result = check(tmp_path, "--interpret", "train", "fmnist", DATA=str(fashion), STRATEGIES="no lower")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "out" / "train.json").read_text())["train"]
    assert all(row["images_per_second"] > 0 for row in rows.values())
    log = (tmp_path / "out" / "fmnist.log").read_text()
    for name in ("no", "lower"):
        assert json.loads((tmp_path / "out" / "fmnist" / name / "log.txt").read_text().splitlines()[-1])["epoch"] == 0
        assert f"| {name}" in log


def test_a_part_that_fails_is_said_and_the_rest_goes_on(tmp_path):
    result = check(tmp_path, "--interpret", "fmnist", "doctor", EPOCHS="none", STRATEGIES="no")
    assert result.returncode == 1
    assert "| fmnist  | FAILED (exit code 1)" in result.stdout
    assert "| doctor  | passed" in result.stdout
    assert "largest error" in (tmp_path / "out" / "doctor.log").read_text()


@pytest.mark.skipif(GPU, reason="here is a GPU")
def test_without_a_gpu(tmp_path):
    result = check(tmp_path)
    assert result.returncode == 2
    assert "PyTorch finds no CUDA GPU; --interpret tries the script" in result.stderr
    assert not (tmp_path / "out").exists()
    assert check(tmp_path, "docter").returncode == 2
