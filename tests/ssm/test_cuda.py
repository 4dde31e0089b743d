"""The adapter to mamba-ssm and causal-conv1d, handed functions with their signatures and documented meaning."""

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import ssm
from ssm import cuda, reference
from ssm.__main__ import scan_inputs
from ssm.inner import mix


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """mamba-ssm's documented reference: u, delta, z [B, D, L]; A [D, N]; B, C [B, N, L]; parameters in fp32."""
    assert all(t.is_contiguous() for t in (u, delta, B, C, z))
    assert u.dtype == delta.dtype == B.dtype == C.dtype == z.dtype
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert delta_softplus
    assert not return_last_state
    dtype, (u, delta, B, C, z) = u.dtype, (t.float() for t in (u, delta, B, C, z))
    delta = F.softplus(delta + delta_bias[:, None])
    h, outputs = torch.zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    return ((torch.stack(outputs, 2) + D[:, None] * u) * F.silu(z)).to(dtype)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    """causal-conv1d's documented reference: x [B, D, L], weight [D, W]."""
    assert activation == "silu"
    assert x.dtype == weight.dtype == bias.dtype
    out = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=x.shape[1])
    return F.silu(out[..., : x.shape[2]])


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    monkeypatch.setattr(cuda, "_functions", lambda: (selective_scan_fn, causal_conv1d_fn))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_layout_direction_and_gradients(reverse):
    inputs = scan_inputs(2, 7, 6, 4)
    found, expected = (op(*inputs, reverse=reverse) for op in (cuda.selective_scan, reference.selective_scan))
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_conv_layout_direction_and_gradients(reverse):
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 7, 6), (6, 4), (6,))]
    found, expected = (op(*inputs, reverse=reverse) for op in (cuda.causal_conv1d, reference.causal_conv1d))
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_mixer_as_one_function(recompute):
    mixer = ssm.BiMamba(8)
    xz = torch.randn(2, 7, 32, requires_grad=True)
    directions = [mixer.forward_ssm.weights(), mixer.backward_ssm.weights()]
    found, expected = (mix(xz, directions, backend, recompute) for backend in (cuda, reference))
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    inputs = [xz, *directions[0], *directions[1]]
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_mixed_precision_keeps_parameters_in_fp32():
    u, delta, A, B, C, D, z, bias = (t.detach() for t in scan_inputs(2, 7, 6, 4))
    low = [t.bfloat16() for t in (u, delta, B, C, z)]
    out = cuda.selective_scan(low[0], low[1], A, low[2], low[3], D, low[4], bias)
    assert out.dtype == torch.bfloat16
    exact = reference.selective_scan(low[0], low[1], A, low[2], low[3], D, low[4], bias)
    torch.testing.assert_close(out, exact, rtol=0.02, atol=0.02)
    x = torch.randn(2, 7, 6, dtype=torch.bfloat16)
    assert cuda.causal_conv1d(x, torch.randn(6, 4), torch.randn(6)).dtype == torch.bfloat16


def ask(monkeypatch, gpu=True, specs=(), functions=None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(cuda, "find_spec", lambda name: ModuleType(name) if name in specs else None)
    if functions:
        monkeypatch.setattr(cuda, "_functions", functions)
    return cuda.unavailable.__wrapped__()


def test_reasons_not_to_be_available(monkeypatch):
    assert ask(monkeypatch, gpu=False) == "PyTorch finds no CUDA GPU"
    assert "no causal-conv1d: pip install" in ask(monkeypatch)
    assert "no mamba-ssm's Mamba-1 kernels: " in ask(monkeypatch, specs=("causal_conv1d",))
    both = ("causal_conv1d", "selective_scan_cuda")

    def broken():
        raise OSError("undefined symbol")

    assert "can't be imported (OSError: undefined symbol)" in ask(monkeypatch, specs=both, functions=broken)
    assert ask(monkeypatch, specs=both, functions=lambda: None) is None


def test_asking_imports_nothing_of_mamba(monkeypatch):
    ask(monkeypatch)
    assert "mamba_ssm" not in sys.modules
    assert find_spec("selective_scan_cuda") is None or torch.cuda.is_available()


def test_kernels_of_the_hub_only_when_asked_for(monkeypatch):
    monkeypatch.undo()
    loaded = []
    hub = ModuleType("kernels")
    functions = {"selective_scan_fn": selective_scan_fn, "causal_conv1d_fn": causal_conv1d_fn}
    hub.get_kernel = lambda name: (loaded.append(name), SimpleNamespace(**functions))[1]
    monkeypatch.setitem(sys.modules, "kernels", hub)
    assert "no causal-conv1d" in ask(monkeypatch, specs=("kernels",))
    assert not loaded
    monkeypatch.setenv("VIM_HUB_KERNELS", "1")
    assert "no causal-conv1d" in ask(monkeypatch)
    cuda._functions.cache_clear()
    assert ask(monkeypatch, specs=("kernels",)) is None
    assert loaded == ["kernels-community/mamba-ssm", "kernels-community/causal-conv1d"]
    assert cuda._functions() == (selective_scan_fn, causal_conv1d_fn)
    cuda._functions.cache_clear()
