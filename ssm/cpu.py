"""Run the two operations in C++, on CPUs."""

from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from native import load_library


@cache
def unavailable() -> str | None:
    """Return in one line why this backend can't run here, None if it can. The first call compiles it."""
    try:
        load_library(Path(__file__).parent, "scan")
    except RuntimeError as error:
        return str(error)
    _register()
    return None


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Convolve as in ssm.reference, but with no other derivative than the gradient."""
    _refuse_transforms(x, weight, bias)
    return torch.ops.vim.causal_conv1d(*_wide(x, weight, bias), reverse).to(x.dtype)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    reverse: bool = False,
) -> Tensor:
    """Scan as in ssm.reference, but with no other derivative than the gradient."""
    _refuse_transforms(u, delta, A, B, C, D, z, delta_bias)
    inputs = _wide(u, delta, A, B, C, D, z, delta_bias)
    keep_states = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return torch.ops.vim.selective_scan(*inputs, reverse, keep_states)[0].to(u.dtype)


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool, dx: Tensor, add: bool
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of causal_conv1d, as a primitive of ssm.backends."""
    grad, x, weight, bias = _wide(grad, x, weight, bias)
    with _buffers(x.dtype, add, dx) as (wide_dx,):
        return torch.ops.vim.causal_conv1d_backward_into(grad, x, weight, bias, reverse, wide_dx, add)


def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    reverse: bool,
    out: Tensor | None = None,
    keep: bool = True,
    lean: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Scan, as a primitive of ssm.backends; save the states between chunks if `keep`, lean or not."""
    inputs = _wide(u, delta, A, B, C, D, z, delta_bias)
    add = out is not None
    out = torch.empty_like(u) if out is None else out
    with _buffers(inputs[0].dtype, add, out) as (wide_out,):
        states = torch.ops.vim.selective_scan_into(*inputs, reverse, keep, wide_out, add)
    return out, (states,) if keep else ()


def selective_scan_backward(
    grad: Tensor,
    saved: tuple[Tensor, ...],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    reverse: bool,
    dB: Tensor,
    dC: Tensor,
    dz: Tensor,
    add: bool,
) -> tuple[Tensor, ...]:
    """Compute the gradients of selective_scan, as a primitive of ssm.backends."""
    grad, *inputs = _wide(grad, u, delta, A, B, C, D, z, delta_bias)
    with (
        _buffers(inputs[0].dtype, add, dz) as (wide_dz,),
        _buffers(inputs[0].dtype, False, dB, dC) as (wide_dB, wide_dC),
    ):
        du, ddelta, *gradients = torch.ops.vim.selective_scan_backward_into(
            grad, *inputs, *saved, reverse, wide_dB, wide_dC, wide_dz, add
        )
    return du.to(u.dtype), ddelta.to(delta.dtype), *gradients


def mixes_in_one(hidden: Tensor, weights: Sequence[Tensor]) -> bool:
    """Return whether mix takes these: all fp32, or all fp64, and autocast would lower none."""
    exact = hidden.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return exact and all(tensor.dtype == hidden.dtype for tensor in weights)


def mix(
    hidden: Tensor, in_proj: Tensor, directions: list[Tensor], out_proj: Tensor, recompute: bool
) -> tuple[Tensor, Tensor]:
    """Run the whole mixer as one operation; return its output, and the sum of all scans without gradients."""
    return torch.ops.vim.mix.default(hidden, in_proj, directions, out_proj, recompute)


def _wide(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Convert all tensors to the first one's dtype, but at least to fp32."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    return [tensor.to(dtype) for tensor in (first, *others)]


@contextmanager
def _buffers(dtype: torch.dtype, filled: bool, *buffers: Tensor):
    """Yield the buffers in another dtype, with their values if `filled`; write the results back at the end."""
    wide = [b if b.dtype == dtype else (b.to(dtype) if filled else torch.empty_like(b, dtype=dtype)) for b in buffers]
    yield wide
    for buffer, computed in zip(buffers, wide, strict=True):
        if computed is not buffer:
            buffer.copy_(computed)


ONE_DERIVATIVE = "the C++ scan and convolution have a gradient, but no {}: use the reference backend for that"


def _refuse_transforms(*inputs: Tensor) -> None:
    """Raise NotImplementedError under torch.func's transforms, or if an input has a tangent, which would be lost."""
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(ONE_DERIVATIVE.format("transform of torch.func"))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError(ONE_DERIVATIVE.format("forward-mode derivative"))


CHUNK = 33  # tokens between saved states, as in csrc/scan.cpp


def _register() -> None:
    """Tell PyTorch the operations' shapes, for torch.compile, and the gradients that are not in csrc/gradients.cpp."""
    library = torch.library

    def states(u, A, keep):
        batch, length, channels = u.shape
        return u.new_empty(batch if keep else 0, (length - 1) // CHUNK, A.shape[1], channels)

    @library.register_fake("vim::causal_conv1d")
    def _(x, weight, bias, reverse):
        return x.new_empty(x.shape)

    @library.register_fake("vim::causal_conv1d_backward")
    def _(grad, x, weight, bias, reverse):
        return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)

    @library.register_fake("vim::causal_conv1d_backward_into")
    def _(grad, x, weight, bias, reverse, dx, add):
        return weight.new_empty(weight.shape), bias.new_empty(bias.shape)

    @library.register_fake("vim::selective_scan_into")
    def _(u, delta, A, B, C, D, z, delta_bias, reverse, keep_states, out, add):
        return states(u, A, keep_states)

    @library.register_fake("vim::selective_scan_backward_into")
    def _(grad, u, delta, A, B, C, D, z, delta_bias, states, reverse, dB, dC, dz, add):
        return tuple(t.new_empty(t.shape) for t in (u, delta, A, D, delta_bias))

    @library.register_fake("vim::selective_scan")
    def _(u, delta, A, B, C, D, z, delta_bias, reverse, keep_states):
        return u.new_empty(u.shape), states(u, A, keep_states)

    @library.register_fake("vim::selective_scan_backward")
    def _(grad, u, delta, A, B, C, D, z, delta_bias, states, reverse):
        return tuple(t.new_empty(t.shape) for t in (u, delta, A, B, C, D, z, delta_bias))

    def setup_conv(ctx, inputs, output):
        *tensors, ctx.reverse = inputs
        ctx.save_for_backward(*tensors)

    def backward_conv(ctx, grad):
        return *torch.ops.vim.causal_conv1d_backward(grad, *ctx.saved_tensors, ctx.reverse), None

    def setup_scan(ctx, inputs, output):
        *tensors, ctx.reverse, _ = inputs
        ctx.save_for_backward(*tensors, output[1])

    def backward_scan(ctx, grad, _):
        gradients = torch.ops.vim.selective_scan_backward(grad, *ctx.saved_tensors, ctx.reverse)
        return *gradients, None, None

    @library.register_fake("vim::add_rms_norm")
    def _(hidden, residual, weight, eps):
        return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape[:2])

    @library.register_fake("vim::add_rms_norm_backward")
    def _(dtotal, dout, total, weight, scales):
        return total.new_empty(total.shape), weight.new_empty(weight.shape)

    def backward_backward(ctx, *grads):
        raise NotImplementedError(ONE_DERIVATIVE.format("second derivative"))

    library.register_autograd("vim::causal_conv1d_backward", backward_backward)
    library.register_autograd("vim::selective_scan_backward", backward_backward)
    library.register_autograd("vim::causal_conv1d", backward_conv, setup_context=setup_conv)
    library.register_autograd("vim::selective_scan", backward_scan, setup_context=setup_scan)
