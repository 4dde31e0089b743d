"""What the C++ operations refuse, and the ends of what they take."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from ssm import cpu, reference
from ssm.__main__ import scan_inputs

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CONV = ("x", "weight", "bias")


def scan(dtype=torch.float32):
    """Inputs of the scan by name: 2 images, 9 tokens, 20 channels, 4 states."""
    return {name: value.detach() for name, value in zip(SCAN, scan_inputs(2, 9, 20, 4, dtype=dtype), strict=True)}


def conv(dtype=torch.float32):
    """Inputs of the convolution by name: 2 images, 9 tokens, 20 channels, 4 taps."""
    generator = torch.Generator().manual_seed(0)
    shapes = zip(CONV, ((2, 9, 20), (20, 4), (20,)), strict=True)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes}


def shortened(inputs):
    """Every way to make one of the inputs one shorter in one of its dimensions."""
    return [(name, dimension) for name, value in inputs.items() for dimension in range(value.ndim)]


@pytest.mark.parametrize(("name", "dimension"), shortened(scan()))
def test_scan_refuses_shapes_that_do_not_fit(name, dimension):
    inputs = scan()
    inputs[name] = inputs[name].narrow(dimension, 0, inputs[name].shape[dimension] - 1)
    with pytest.raises(RuntimeError, match="must be of shape"):
        cpu.selective_scan(**inputs)
    operands = (torch.randn(2, 9, 20), *inputs.values(), torch.zeros(2, 1, 4, 20))
    with pytest.raises(RuntimeError, match="must be of shape"):
        torch.ops.vim.selective_scan_backward(*operands, False)


@pytest.mark.parametrize(
    ("name", "dimension"), [pair for pair in shortened(conv()) if pair not in (("x", 0), ("x", 1), ("weight", 1))]
)
def test_conv_refuses_shapes_that_do_not_fit(name, dimension):
    inputs = conv()
    inputs[name] = inputs[name].narrow(dimension, 0, inputs[name].shape[dimension] - 1)
    with pytest.raises(RuntimeError, match="must be of shape"):
        cpu.causal_conv1d(**inputs)
    with pytest.raises(RuntimeError, match="must be of shape"):
        torch.ops.vim.causal_conv1d_backward(torch.randn(2, 9, 20), *inputs.values(), False)


@pytest.mark.parametrize("shape", [(2, 9, 19), (2, 8, 20), (1, 9, 20)])
def test_gradients_and_states_must_fit_too(shape):
    states = torch.zeros(2, 1, 4, 20)
    with pytest.raises(RuntimeError, match="grad must be of shape"):
        torch.ops.vim.causal_conv1d_backward(torch.randn(shape), *conv().values(), False)
    with pytest.raises(RuntimeError, match="grad must be of shape"):
        torch.ops.vim.selective_scan_backward(torch.randn(shape), *scan().values(), states, False)
    with pytest.raises(RuntimeError, match="states must be of shape"):
        torch.ops.vim.selective_scan_backward(torch.randn(2, 9, 20), *scan().values(), states[:1], False)


@pytest.mark.parametrize("name", SCAN[1:])
def test_scan_refuses_another_dtype(name):
    inputs = scan()
    with pytest.raises(RuntimeError, match=f"{name} must be Float, not Double"):
        torch.ops.vim.selective_scan(*(inputs | {name: inputs[name].double()}).values(), False, True)


@pytest.mark.parametrize("name", CONV[1:])
def test_conv_refuses_another_dtype(name):
    inputs = conv()
    with pytest.raises(RuntimeError, match=f"{name} must be Float, not Double"):
        torch.ops.vim.causal_conv1d(*(inputs | {name: inputs[name].double()}).values(), False)


@pytest.mark.parametrize("missing", ["images", "tokens", "channels", "states"])
def test_none_of_something_gives_none(missing):
    B, L, D, N = (
        size if name != missing else 0
        for name, size in zip(("images", "tokens", "channels", "states"), (2, 9, 20, 4), strict=True)
    )
    inputs = [
        torch.randn(s, requires_grad=True)
        for s in ((B, L, D), (B, L, D), (D, N), (B, L, N), (B, L, N), (D,), (B, L, D), (D,))
    ]
    for op, arguments in ((cpu.selective_scan, inputs), (cpu.causal_conv1d, [inputs[0], torch.randn(D, 4), inputs[5]])):
        out = op(*arguments)
        assert out.shape == (B, L, D)
        gradients = torch.autograd.grad(out.sum(), [a for a in arguments if a.requires_grad], allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_matrix_of_minus_zero_decays_nothing(dtype):
    inputs = scan(dtype)
    inputs["A"] = torch.full_like(inputs["A"], -0.0)
    torch.testing.assert_close(cpu.selective_scan(**inputs), reference.selective_scan(**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate_closes_however_negative(dtype):
    far = torch.tensor([-3e38, -1e30, -200.0, -90.0, -87.0, -20.0, 0.0, 87.0, 3e38], dtype=dtype)
    x = far.view(1, 9, 1).expand(1, 9, 20)
    inputs = [
        x.clone().requires_grad_(),
        torch.tensor([[0.0, 1.0]], dtype=dtype).repeat(20, 1),
        torch.zeros(20, dtype=dtype),
    ]
    out = cpu.causal_conv1d(*inputs)
    torch.testing.assert_close(out, F.silu(x), rtol=1e-5, atol=1e-30)
    (gradient,) = torch.autograd.grad(out.sum(), inputs[:1])
    (expected,) = torch.autograd.grad(F.silu(inputs[0]).sum(), inputs[:1])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-30)
    gated = scan(dtype) | {"z": x[:, :, :20].expand(2, 9, 20)}
    torch.testing.assert_close(cpu.selective_scan(**gated)[:, :2], torch.zeros(2, 2, 20, dtype=dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("op", "make"), [(cpu.selective_scan, scan), (cpu.causal_conv1d, conv)])
class TestOneDerivative:
    """The operations know their gradient, and neither its gradient nor forward mode: that is an error, never zeros."""

    def test_double_backward(self, op, make):
        inputs = [value.requires_grad_() for value in make().values()]
        (gradient,) = torch.autograd.grad(op(*inputs).square().sum(), inputs[:1], create_graph=True)
        with pytest.raises((RuntimeError, NotImplementedError), match="the reference"):
            torch.autograd.grad(gradient.square().sum(), inputs, allow_unused=True)

    def test_forward_mode(self, op, make):
        inputs = list(make().values())
        with forward_ad.dual_level():
            inputs[1] = forward_ad.make_dual(inputs[1], torch.ones_like(inputs[1]))
            with pytest.raises((RuntimeError, NotImplementedError), match="the reference"):
                op(*inputs)

    @pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
    def test_other_transforms(self, op, make, transform):
        first, *others = make().values()
        with pytest.raises(NotImplementedError, match="no transform of torch.func: use the reference"):
            transform(lambda value: op(value, *others).sum())(first)

    def test_functional_forward_mode(self, op, make):
        inputs = tuple(make().values())
        with pytest.raises((RuntimeError, NotImplementedError), match="the reference"):
            torch.func.jvp(op, inputs, tuple(torch.ones_like(value) for value in inputs))
