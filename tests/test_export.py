"""The evaluation model outside of this code: exported by PyTorch, run by ONNX Runtime, stored as safetensors."""

import sys

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from timm.models import load_checkpoint

import fusion
import ssm
from models_mamba import VisionMamba, checkpoint_filter_fn

SIDE = 12  # of images: each of their tokens is a part of an exported program


@pytest.fixture
def _reference_scan():
    """Exported programs hold PyTorch's own operations, so the scan is the one that is written in them."""
    ssm.use_backend("reference")
    yield
    ssm.use_backend("auto")


BY_PARTS = fusion.Method(metric="B", score="delta")


def small_model(plan=(0, 0), method=fusion.Method()):
    torch.manual_seed(0)
    model = VisionMamba(img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_classes=5).eval()
    fusion.inject(model, plan, method)
    return model


def images(batch=3):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("_reference_scan")
@pytest.mark.parametrize("plan", [(0, 0), (3, 2)])
def test_an_exported_program_says_the_same(plan):
    model, x = small_model(plan), images()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x + 1), model(x + 1))


@pytest.mark.usefixtures("_reference_scan")
@pytest.mark.parametrize(
    ("plan", "method", "optimize"),
    [
        ((0, 0), fusion.Method(), True),
        ((3, 2), fusion.Method(), True),
        ((3, 2), BY_PARTS, False),
    ],
)
def test_onnx_says_the_same(tmp_path, plan, method, optimize):
    model, x = small_model(plan, method), images()
    path = tmp_path / "model.onnx"
    told = {"custom_translation_table": fusion.onnx_translations()} if any(plan) else {}
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, optimize=optimize, **told)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: (x + 1).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x + 1), rtol=1e-4, atol=1e-5)


def test_onnx_without_its_packages_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        fusion.onnx_translations()


def test_safetensors(tmp_path):
    model, x = small_model(), images()
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    other = VisionMamba(img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_classes=5).eval()
    safetensors.torch.load_model(other, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timm_loads_a_file(tmp_path, suffix):
    model = timm.create_model("vim_pico_patch2_8", num_classes=3).eval()
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"model": model.state_dict()}, path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    other = timm.create_model("vim_pico_patch2_8", num_classes=3).eval()
    load_checkpoint(other, str(path), strict=True)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    created = timm.create_model("vim_pico_patch2_8", num_classes=3, checkpoint_path=str(path)).eval()
    torch.testing.assert_close(created(x), model(x), rtol=0, atol=0)


def test_timm_loads_a_published_file(tmp_path, load_golden, golden_model):
    """With the published keys, and a filter that renames them."""
    golden = load_golden("vim_v2_midcls_p8")
    expected = golden_model(golden)
    torch.save({"model": golden["state_dict"]}, tmp_path / "published.pth")
    other = golden_model(golden | {"state_dict": expected.state_dict()})
    with torch.no_grad():
        other.head.weight.zero_()
    load_checkpoint(other, str(tmp_path / "published.pth"), strict=True, filter_fn=checkpoint_filter_fn)
    assert torch.equal(other.head.weight, expected.head.weight)
