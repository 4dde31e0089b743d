"""How many kernels a layer launches on a GPU, counted without one."""

from pathlib import Path

import pytest

from native import kernels

pytestmark = pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")
if kernels.find_spec("triton"):
    from scripts import count_launches as program

ROOT = Path(__file__).parents[2]


def test_fusing_adds_few_launches():
    (forward, backward), (fused, fused_backward) = (program.count(kind) for kind in ("plain", "fused in Triton"))
    added = fused - forward
    assert dict(added) == dict.fromkeys(("unite", "bmm", "max", "rank", "place", "merge"), 1)
    assert dict(fused_backward - backward) == {"spread": 1, "zeros": 1}
    assert forward["scan_forward"] == backward["scan_backward"] == 2


def test_the_page_shows_the_counts():
    assert program.table() in (ROOT / "docs" / "gpu.md").read_text()
