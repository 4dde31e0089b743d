"""The two operations against their definitions, written out element by element."""

import math

import pytest
import torch
import torch.nn.functional as F

import ssm.reference as reference
from ssm.reference import causal_conv1d, selective_scan


def scan_inputs(B=2, L=5, D=3, N=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "u": draw(B, L, D),
        "delta": draw(B, L, D),
        "A": -draw(D, N).exp(),
        "B": draw(B, L, N),
        "C": draw(B, L, N),
        "D": draw(D),
        "z": draw(B, L, D),
        "delta_bias": draw(D),
    }


def scan_by_elements(u, delta, A, B, C, D, z, delta_bias, reverse):
    """The recurrence of the docstring for one channel of one image at a time."""
    out = torch.zeros_like(u)
    batch, length, channels = u.shape
    order = range(length - 1, -1, -1) if reverse else range(length)
    for b in range(batch):
        for c in range(channels):
            h = torch.zeros(A.shape[1], dtype=u.dtype)
            for t in order:
                d = math.log1p(math.exp(delta[b, t, c] + delta_bias[c]))
                h = torch.exp(d * A[c]) * h + d * B[b, t] * u[b, t, c]
                gate = z[b, t, c] / (1 + math.exp(-z[b, t, c]))
                out[b, t, c] = (torch.dot(C[b, t], h) + D[c] * u[b, t, c]) * gate
    return out


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_scan_is_its_definition(length, reverse):
    inputs = scan_inputs(L=length)
    torch.testing.assert_close(selective_scan(**inputs, reverse=reverse), scan_by_elements(**inputs, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_gradients(reverse):
    inputs = {name: value.requires_grad_() for name, value in scan_inputs(L=4, D=2, N=3).items()}
    assert torch.autograd.gradcheck(lambda *args: selective_scan(*args, reverse=reverse), tuple(inputs.values()))


def test_scan_reversed_is_the_scan_of_the_flipped_sequence():
    inputs = scan_inputs()
    flipped = {name: value.flip(1) if value.ndim == 3 else value for name, value in inputs.items()}
    torch.testing.assert_close(selective_scan(**inputs, reverse=True), selective_scan(**flipped).flip(1))


@pytest.mark.parametrize("limit", [1, 700])  # bytes: every image alone, and three images together
def test_large_scans_are_recomputed_with_equal_results(monkeypatch, limit):
    inputs = {name: value.requires_grad_() for name, value in scan_inputs(B=5, L=6, N=2, dtype=torch.float32).items()}

    def run():
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = selective_scan(**inputs, reverse=True)
        return out, torch.autograd.grad(out.square().sum(), list(inputs.values())), saved

    whole, whole_gradients, whole_saved = run()
    monkeypatch.setattr(reference, "MAX_STATE_BYTES", limit)
    pieces, pieces_gradients, pieces_saved = run()
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(pieces_gradients, whole_gradients)
    assert pieces_saved < whole_saved / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_scanned_in_fp32(dtype):
    inputs = scan_inputs(L=40, dtype=dtype)
    out = selective_scan(**inputs)
    assert out.dtype == dtype
    exact = selective_scan(**{name: value.float() for name, value in inputs.items()})
    torch.testing.assert_close(out, exact.to(dtype), rtol=0, atol=0)


def test_autocast_does_not_lower_the_scan():
    inputs = scan_inputs(L=40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(**inputs)
    torch.testing.assert_close(out, selective_scan(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_conv_is_pytorchs_depthwise_convolution(length, reverse):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, length, 5), (5, 4), (5,)))
    sequence = x.flip(1) if reverse else x
    expected = F.conv1d(F.pad(sequence.transpose(1, 2), (3, 0)), weight.unsqueeze(1), bias, groups=5)
    expected = F.silu(expected).transpose(1, 2)
    expected = expected.flip(1) if reverse else expected
    torch.testing.assert_close(causal_conv1d(x, weight, bias, reverse=reverse), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_conv_gradients(reverse):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 3), (3, 4), (3,))]
    assert torch.autograd.gradcheck(lambda *args: causal_conv1d(*args, reverse=reverse), inputs)


@pytest.mark.parametrize("reverse", [False, True])
def test_no_token_sees_ahead_of_the_direction(reverse):
    inputs = scan_inputs(L=8)
    out = selective_scan(**inputs, reverse=reverse)
    inputs["u"] = inputs["u"].clone()
    inputs["u"][:, 4] += 1
    changed = (selective_scan(**inputs, reverse=reverse) - out).abs().sum(dim=(0, 2)) > 0
    assert changed.tolist() == [(t <= 4) if reverse else (t >= 4) for t in range(8)]
