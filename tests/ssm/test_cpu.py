"""The C++ operations: exactness in both directions, any shape and stride, gradients, torch.compile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssm
from ssm import cpu, reference
from ssm.__main__ import scan_inputs

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def conv_inputs(B, L, D, W, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, L, D), (D, W), (D,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def run(op, inputs, upstream, reverse):
    out = op(*inputs, reverse=reverse)
    return out, torch.autograd.grad(out, inputs, upstream.to(out.dtype))


def errors(op, exact_op, exact, dtype, reverse):
    """Largest relative errors of output and gradients against the reference in fp64."""
    upstream = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, expected_gradients = run(exact_op, exact, upstream, reverse)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    found, gradients = run(op, inputs, upstream, reverse)
    assert found.dtype == dtype

    def error(a, b):
        assert a.shape == b.shape
        return ((a.double() - b).abs().max() / b.abs().max()).item()

    return error(found, expected), max(error(a, b) for a, b in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 3, 37, 197])
@pytest.mark.parametrize(("channels", "states"), [(384, 16), (50, 8), (20, 5)])
def test_scan_is_exact(length, channels, states, reverse):
    exact = scan_inputs(2, length, channels, states, dtype=torch.float64)
    forward, gradient = errors(cpu.selective_scan, reference.selective_scan, exact, torch.float32, reverse)
    assert forward <= 1e-6
    assert gradient <= 5e-6
    forward, gradient = errors(cpu.selective_scan, reference.selective_scan, exact, torch.float64, reverse)
    assert max(forward, gradient) <= 1e-13


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "channels", "width"), [(1, 5, 4), (3, 50, 4), (197, 384, 4), (37, 16, 3), (2, 7, 2)]
)
def test_conv_is_exact(length, channels, width, reverse):
    exact = conv_inputs(2, length, channels, width)
    forward, gradient = errors(cpu.causal_conv1d, reference.causal_conv1d, exact, torch.float32, reverse)
    assert forward <= 1e-6
    assert gradient <= 5e-6
    forward, gradient = errors(cpu.causal_conv1d, reference.causal_conv1d, exact, torch.float64, reverse)
    assert max(forward, gradient) <= 1e-13


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 5),
    L=st.integers(1, 70),
    D=st.integers(1, 40),
    N=st.integers(1, 18),
    threads=st.sampled_from([1, 2, 3, 8]),
)
def test_any_shape_and_number_of_threads(B, L, D, N, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = scan_inputs(B, L, D, N, dtype=torch.float64)
        assert max(errors(cpu.selective_scan, reference.selective_scan, exact, torch.float64, L % 2 == 0)) <= 1e-12
        convolved = conv_inputs(B, L, D, 4)
        assert max(errors(cpu.causal_conv1d, reference.causal_conv1d, convolved, torch.float64, L % 2 == 0)) <= 1e-12
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
def test_strided_inputs(name):
    """Halves of one projection and slices of another need no copy."""
    inputs = dict(zip(NAMES, scan_inputs(2, 9, 24, 4), strict=True))
    plain = cpu.selective_scan(**inputs)
    wide = torch.randn(2, 9, 2 * inputs[name].shape[-1] + 3)
    wide[..., 3 : 3 + inputs[name].shape[-1]] = inputs[name].detach()
    inputs[name] = wide[..., 3 : 3 + inputs[name].shape[-1]]
    torch.testing.assert_close(cpu.selective_scan(**inputs), plain, rtol=0, atol=0)
    inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)  # channels apart
    torch.testing.assert_close(cpu.selective_scan(**inputs), plain, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_fp32(dtype):
    inputs = [tensor.detach().to(dtype) for tensor in scan_inputs(2, 40, 24, 4)]
    out = cpu.selective_scan(*inputs)
    assert out.dtype == dtype
    exact = cpu.selective_scan(*(tensor.float() for tensor in inputs))
    torch.testing.assert_close(out, exact.to(dtype), rtol=0, atol=0)


def test_extreme_steps_stay_finite():
    inputs = dict(zip(NAMES, scan_inputs(1, 5, 16, 4), strict=True))
    inputs["delta"] = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0]).view(1, 5, 1).repeat(1, 1, 16).requires_grad_()
    inputs["z"] = inputs["delta"].detach().flip(1).requires_grad_()
    out, gradients = run(cpu.selective_scan, list(inputs.values()), torch.ones(1, 5, 16), False)
    expected, expected_gradients = run(reference.selective_scan, list(inputs.values()), torch.ones(1, 5, 16), False)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)


def test_states_may_grow():
    """A is negative in the model; the operation takes any, up to the growth that fp32 holds."""
    inputs = dict(zip(NAMES, scan_inputs(2, 3, 20, 3), strict=True))
    inputs["A"] = torch.linspace(-5.0, 9.0, 60).view(20, 3).requires_grad_()
    upstream = torch.randn(2, 3, 20)
    out, gradients = run(cpu.selective_scan, list(inputs.values()), upstream, False)
    expected, expected_gradients = run(reference.selective_scan, list(inputs.values()), upstream, False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)
    inputs["A"] = inputs["A"].detach() * 1e4
    out = cpu.selective_scan(**inputs)
    assert not (out[:, -1, -1].abs() < 1e30).any()  # what overflows is huge or not finite, never a small number


@pytest.mark.parametrize("threads", [1, 2])
def test_states_end_before_they_become_denormal(threads):
    """A decay of e^-10 a token leaves e^-90 of the first, which fp32 holds with fewer digits, at a high price."""
    inputs = dict(zip(NAMES, (tensor.detach() for tensor in scan_inputs(2, 10, 16, 1)), strict=True))
    inputs |= {name: torch.ones_like(inputs[name]) for name in ("B", "C", "z")}
    inputs |= {"A": torch.full((16, 1), -1.0), "delta": torch.full((2, 10, 16), 10.0)}
    inputs |= {name: torch.zeros(16) for name in ("D", "delta_bias")}
    inputs["u"] = torch.eye(10, 1).expand(2, 10, 16).contiguous()
    before, small = torch.get_num_threads(), torch.tensor([1e-39])
    try:
        torch.set_num_threads(threads)
        out = cpu.selective_scan(**inputs)
    finally:
        torch.set_num_threads(before)
    assert (out[:, :9] > 0).all()
    assert (out[:, 9] == 0).all()
    assert small * 1 > 0  # everywhere else nothing changes


@pytest.mark.parametrize(("name", "bad"), [*((name, float("nan")) for name in NAMES), ("u", float("inf"))])
def test_what_is_not_finite_shows_where_it_does_in_the_reference(name, bad):
    inputs = dict(zip(NAMES, scan_inputs(2, 40, 24, 4), strict=True))
    inputs[name] = inputs[name].detach().clone()
    inputs[name].view(-1)[5] = bad
    found, expected = (op(**inputs) for op in (cpu.selective_scan, reference.selective_scan))
    torch.testing.assert_close(found.isfinite(), expected.isfinite(), rtol=0, atol=0)
    torch.testing.assert_close(found[expected.isfinite()], expected[expected.isfinite()])


@pytest.mark.parametrize("at", [0, 2])
def test_conv_keeps_what_is_not_a_number(at):
    inputs = [tensor.detach() for tensor in conv_inputs(2, 5, 3, 4, torch.float32)]
    inputs[at].view(-1)[1] = float("nan")
    found, expected = (op(*inputs) for op in (cpu.causal_conv1d, reference.causal_conv1d))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse):
    inputs = scan_inputs(2, 5, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *args: cpu.selective_scan(*args, reverse=reverse), inputs)
    convolved = conv_inputs(2, 5, 3, 4)
    assert torch.autograd.gradcheck(lambda *args: cpu.causal_conv1d(*args, reverse=reverse), convolved)


@pytest.mark.parametrize("reverse", [False, True])
def test_opcheck(reverse):
    scan = (*scan_inputs(2, 40, 3, 2), reverse, True)
    assert set(torch.library.opcheck(torch.ops.vim.selective_scan.default, scan).values()) == {"SUCCESS"}
    conv = (*conv_inputs(2, 5, 3, 4, torch.float32), reverse)
    assert set(torch.library.opcheck(torch.ops.vim.causal_conv1d.default, conv).values()) == {"SUCCESS"}


def test_states_are_kept_only_for_gradients():
    inputs = scan_inputs(2, 40, 3, 2)
    assert torch.ops.vim.selective_scan(*inputs, False, True)[1].shape == (2, 1, 2, 3)  # between two chunks
    assert torch.ops.vim.selective_scan(*scan_inputs(2, cpu.CHUNK, 3, 2), False, True)[1].numel() == 0
    assert torch.ops.vim.selective_scan(*inputs, False, False)[1].numel() == 0
    with torch.no_grad():
        out = cpu.selective_scan(*inputs)
    torch.testing.assert_close(out, cpu.selective_scan(*inputs).detach(), rtol=0, atol=0)


def test_mixer_compiles_without_a_break():
    torch._dynamo.reset()
    mixer = ssm.BiMamba(8)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    with ssm.use_backend("cpu"):
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        out = compiled(hidden)
        (gradient,) = torch.autograd.grad(out.sum(), hidden)
        expected = mixer(hidden)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradient, expected_gradient)
