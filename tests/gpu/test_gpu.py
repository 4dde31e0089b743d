"""What only a GPU can show; skipped where there is none.

scripts/gpu_check.sh runs these. With TRITON_INTERPRET=1 those that can run on a CPU, at small sizes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusion
import models_mamba
import ssm
from native import kernels
from ssm import reference
from ssm.__main__ import scan_inputs

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(not GPU and not kernels.INTERPRETED, reason="no GPU")
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU")
SHAPES = [(4, 197, 384, 16), (3, 37, 50, 5), (2, 9, 64, 40)] if GPU else [(1, 3, 8, 4)]


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    if ssm.unavailable(request.param):
        pytest.skip(ssm.unavailable(request.param))
    with ssm.use_backend(request.param):
        yield request.param


def conv_inputs(B, L, D, W=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((B, L, D), (D, W), (D,))]


def worst(name, exact, dtype, reverse):
    """Largest errors of output and gradients against the reference in fp64 on a CPU."""

    def run(op, device, dtype):
        inputs = [tensor.detach().to(device, dtype).requires_grad_() for tensor in exact]
        out = op(*inputs, reverse=reverse)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        gradients = torch.autograd.grad(out, inputs, upstream.to(out))
        return [tensor.detach().double().cpu() for tensor in (out, *gradients)]

    found, expected = run(getattr(ssm, name), DEVICE, dtype), run(getattr(reference, name), "cpu", torch.float64)
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]
    return errors[0], max(errors[1:])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_backend_is_exact(backend, shape, reverse):
    B, L, D, _ = shape
    for name, exact in (
        ("selective_scan", scan_inputs(*shape, dtype=torch.float64)),
        ("causal_conv1d", conv_inputs(B, L, D - D % 8 if backend == "cuda" else D)),
    ):
        forward, gradient = worst(name, exact, torch.float32, reverse)
        assert forward <= (1e-6 if backend == "triton" else 1e-5), name
        assert gradient <= (5e-6 if backend == "triton" else 1e-4), name
        forward, gradient = worst(name, exact, torch.bfloat16, reverse)
        assert max(forward, gradient) <= 0.05, name


def small_model():
    torch.manual_seed(0)
    size = {"img_size": 64, "depth": 4, "embed_dim": 64} if GPU else {"img_size": 8, "depth": 1, "embed_dim": 4}
    patch = 8 if GPU else 4
    model = models_mamba.VisionMamba(patch_size=patch, num_classes=10, d_state=16 if GPU else 4, **size)
    return model.to(DEVICE).train(), torch.randn(4 if GPU else 1, 3, size["img_size"], size["img_size"], device=DEVICE)


def gradients(model, run, images):
    loss = run(images).float().square().mean()
    return loss, *torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(backend, dtype):
    if not GPU and dtype == torch.float16:
        pytest.skip("a CPU's mixed precision is bfloat16")
    model, images = small_model()
    exact = gradients(model, model, images)
    with torch.autocast(DEVICE, dtype):
        mixed = gradients(model, model, images)
    for a, b in zip(mixed, exact, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 0.1 * b.abs().max() + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_chooses_the_same_pairs(dtype):
    """Of tokens so alike that half precision couldn't tell them apart."""
    if not GPU and dtype == torch.float16:
        pytest.skip("a CPU's mixed precision is bfloat16")
    metric = 2 + torch.randn(4, 65, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = fusion.match(metric, 8)
    with torch.autocast(DEVICE, dtype):
        found = fusion.match(metric, 8)
    assert torch.equal(found.source, expected.source)
    assert torch.equal(found.target, expected.target)


def test_compiled(backend):
    if backend == "cuda":
        pytest.skip("mamba-ssm's functions are no operators")
    torch._dynamo.reset()
    model, images = small_model()
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if GPU else "aot_eager")
    found, expected = gradients(model, compiled, images), gradients(model, model, images)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6


def test_the_same_bits_every_time(backend):
    if backend == "cuda":
        pytest.skip("mamba-ssm sums in any order")
    model, images = small_model()
    first, second = (gradients(model, model, images) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_gpu
def test_two_streams(backend):
    """Two models at once on streams of their own give what they give alone."""
    model, images = small_model()
    expected = gradients(model, model, images)
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    for stream in streams:
        with torch.cuda.stream(stream):
            found.append([gradients(model, model, images) for _ in range(5)])
    torch.cuda.synchronize()
    for results in found:
        for result in results:
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)


@needs_gpu
def test_another_gpu_than_the_present_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    inputs = [tensor.detach().to("cuda:1") for tensor in scan_inputs(2, 9, 64, 16)]
    torch.testing.assert_close(ssm.selective_scan(*inputs), reference.selective_scan(*inputs), rtol=1e-4, atol=1e-5)


def train(*flags):
    command = [sys.executable, "main.py", "--num_workers", "0", "--epochs", "1", "--warmup-epochs", "0", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


@needs_gpu
def test_out_of_memory_is_one_line():
    result = train("--model", "vim_base_patch16_224", "--batch-size", "1000000")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "out of memory" in result.stderr
    assert "--grad-accum-steps" in result.stderr


@needs_gpu
def test_what_is_not_finite_stops_the_run():
    result = train("--lr", "1e30", "--unscale-lr", "--no-model-ema")
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    assert "the last good step had loss" in result.stderr


@needs_gpu
def test_peak_memory_is_the_gpus(tmp_path):
    result = train("--output_dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "log.txt").read_text().splitlines()[-1])
    assert record["scan_backend"] in ("triton", "cuda")
    assert 0 < record["training_memory_mb"] <= record["peak_memory_mb"] < torch.cuda.mem_get_info()[1] / 2**20
