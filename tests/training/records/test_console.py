"""What the overview says."""

import pytest
import torch

from training.records import console


@pytest.mark.parametrize(
    ("dtype", "device", "units", "said"),
    [
        (None, "cuda", False, "fp32"),
        (torch.bfloat16, "cuda", True, "mixed precision in bfloat16"),
        (
            torch.bfloat16,
            "cuda",
            False,
            "mixed precision in bfloat16, which this GPU only emulates: --amp-dtype float16",
        ),
        (torch.float16, "cuda", False, "mixed precision in float16"),
        (torch.bfloat16, "cpu", False, "mixed precision in bfloat16"),
    ],
)
def test_precision_that_a_gpu_only_emulates(monkeypatch, dtype, device, units, said):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units)
    found = console._precision(dtype, torch.device(device))
    assert found == said + (" is faster" if "emulates" in said else "")
