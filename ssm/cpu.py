"""The two operations in C++, for CPUs."""

from functools import cache

import torch
from torch import Tensor

from ssm.build import load_library


@cache
def unavailable() -> str | None:
    """Why this backend can't run here, in one line; None if it can. Compiles at the first call."""
    try:
        load_library()
    except RuntimeError as error:
        return str(error)
    _register()
    return None


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """As in ssm.reference."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.ops.vim.causal_conv1d(x.to(dtype), weight.to(dtype), bias.to(dtype), reverse).to(x.dtype)


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
    """As in ssm.reference."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    inputs = [tensor.to(dtype) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
    keep_states = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return torch.ops.vim.selective_scan(*inputs, reverse, keep_states)[0].to(u.dtype)


CHUNK = 33  # tokens between kept states, as in csrc/scan.cpp


def _register() -> None:
    """Tell PyTorch the operations' shapes, for torch.compile, and their gradients."""
    library = torch.library

    @library.register_fake("vim::causal_conv1d")
    def _(x, weight, bias, reverse):
        return x.new_empty(x.shape)

    @library.register_fake("vim::causal_conv1d_backward")
    def _(grad, x, weight, bias, reverse):
        return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)

    @library.register_fake("vim::selective_scan")
    def _(u, delta, A, B, C, D, z, delta_bias, reverse, keep_states):
        batch, length, channels = u.shape
        images = batch if keep_states else 0
        return u.new_empty(u.shape), u.new_empty(images, (length + CHUNK - 1) // CHUNK, A.shape[1], channels)

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

    library.register_autograd("vim::causal_conv1d", backward_conv, setup_context=setup_conv)
    library.register_autograd("vim::selective_scan", backward_scan, setup_context=setup_scan)
