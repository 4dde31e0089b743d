"""Triton's kernels for fusion: run in its interpreter in a process of their own, and compiled for absent GPUs."""

from pathlib import Path

import pytest
import torch

from native import kernels
from tests.interpreter import run_interpreted

pytestmark = pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")


def test_in_the_interpreter():
    run_interpreted(Path(__file__).with_name("interpreted_triton.py"))


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


def test_more_images_than_a_grid_has_room_for():
    from fusion.triton import launch

    with pytest.raises(ValueError, match="at most 65,535 images at once, not 65,536"):
        launch.match(torch.zeros(65_536, 3, 2), torch.zeros(65_536, 0, dtype=torch.long), 1)
