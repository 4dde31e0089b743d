"""What the Triton kernels need on GPUs that are not here, and what is predicted from it."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from native import kernels

pytestmark = pytest.mark.skipif(kernels.find_spec("triton") is None, reason="PyTorch's CPU wheels bring no Triton")
if kernels.find_spec("triton"):
    from scripts import triton_report as program
    from ssm.triton import launch, offline

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "results" / "triton_kernels.json").read_text())


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No kernel that was compiled by an earlier version."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(kernels, spilled=0):
    """The bounds that hold for 16 states."""
    assert all(needs["spilled"] <= spilled for needs in kernels.values())
    assert kernels["scan"]["issued"] <= 155
    assert kernels["scan, backward"]["issued"] <= 450
    assert kernels["scan"]["registers"] <= 128  # 16 warps a processor
    assert all(needs["shared"] <= 6 * 1024 for needs in kernels.values())


@pytest.mark.parametrize("capability", [80, 90])
def test_nothing_spills_and_a_new_length_compiles_nothing(monkeypatch, capability):
    case = program.Case()
    monkeypatch.setattr(launch, "block_width", lambda *counts: case.block)
    check(program.compile_case(case, capability))
    with offline.compiling_for(capability) as known:
        program.call(case)
    with offline.compiling_for(capability) as kernels:
        for length, batch in ((197, 2), (36, 1), (1, 3), (8, 7)):
            program.call(case, length, batch)
    assert {id(kernel) for kernel in kernels} == {id(kernel) for kernel in known}
    assert len({id(kernel) for kernel in known}) == len(program.KERNELS)


def test_masked_channels_hardly_spill():
    check(program.compile_case(program.Case(channels=376, reverse=True, add=True), 90), spilled=10)


def test_kept_results_hold_the_bounds_and_the_page_shows_them():
    main = str(program.Case())
    for cases in RESULTS["kernels"].values():
        assert set(cases) == {str(case) for case in program.CASES}
        check(cases[main])
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert program.kernel_table(RESULTS["kernels"]) in page
    assert program.prediction_table(RESULTS["predictions"]) in page
    for gpu in program.GPUS:
        for model, channels in program.MODELS.items():
            predicted = program.predict(gpu, RESULTS["kernels"][str(gpu.capability)][main], channels)
            assert predicted == RESULTS["predictions"][f"{gpu.name}, {model}"]


def test_prediction_by_hand():
    """1,536 warps a direction of 384 channels, 197 tokens, 150 instructions: 43 microseconds on an H200."""
    kernels = {name: {"issued": 150.0, "special": 0.0} for name in program.KERNELS}
    row = program.predict(program.GPUS[1], kernels, 384)["scan"]
    assert row["issue"] == pytest.approx(1000 * 48 * 1536 * 197 * 150 / 528 / 1.98e9)
    assert row["issue"] / 48 == pytest.approx(0.0434, abs=1e-4)
    assert row["least"] == max(row["issue"], row["memory"])


def test_what_a_step_keeps(monkeypatch):
    """What autograd keeps of a step of Vim-Ti on 8 images, by tensors without memory."""
    import timm

    import models_mamba  # noqa: F401, registers the model
    from ssm import backends
    from ssm.triton import operators  # noqa: F401, registers the operators

    monkeypatch.setattr(backends, "_picked", lambda device_type: "triton")
    model, kept = timm.create_model("vim_tiny_patch16_224", num_classes=1000), {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        images, labels = torch.randn(8, 3, 224, 224), torch.randint(1000, (8,))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
        assert parameter.grad is not None
    assert 400 < sum(kept.values()) / 2**20 <= 548
