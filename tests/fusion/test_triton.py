"""Triton's kernels for fusion: run in its interpreter in a process of their own, and compiled for absent GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from native import kernels

pytestmark = pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")


def test_in_the_interpreter():
    """The interpreter must be chosen before Triton is imported, and then nothing can be compiled any more."""
    tests = Path(__file__).with_name("interpreted_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tests.parents[2])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_and_a_new_length_compiles_nothing(monkeypatch, tmp_path, capability):
    from fusion.triton import launch
    from ssm.triton import offline

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def fuse(B, L, K, r, D=192):
        launch.match(torch.randn(B, L, D), torch.zeros(B, K, dtype=torch.long), r)
        keep, source, index = (torch.zeros(B, tokens, dtype=torch.long) for tokens in (L - r, r, L))
        for merge, tokens in ((launch.merge, L), (launch.merge_backward, L - r)):
            hidden, residual = torch.randn(B, tokens, D).bfloat16(), torch.randn(B, tokens, D)
            merge(hidden, residual, torch.ones(B, L), keep, source, index, True)

    with offline.compiling_for(capability) as known:
        fuse(2, 197, 1, 8)
    assert len({id(kernel) for kernel in known}) == len(known) == 5
    assert all(offline.needs(kernel).spilled == 0 for kernel in known)
    with offline.compiling_for(capability) as found:
        fuse(1, 196, 0, 16)
        fuse(3, 17, 2, 1)
    assert {id(kernel) for kernel in found} == {id(kernel) for kernel in known}
