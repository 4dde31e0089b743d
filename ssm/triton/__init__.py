"""Run the two operations in Triton, on GPUs: channels last, in either direction, without transposing or flipping.

They save nothing but their inputs for the backward pass. Sums over tokens and images are made in a fixed order, so the
same inputs give the same bits.
"""

from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from native import kernels


@cache
def unavailable() -> str | None:
    """Return in one line why this backend can't run here; if it can, register its operators and return None."""
    reason = kernels.unavailable()
    if reason is None:
        from ssm.triton import operators  # noqa: F401, importing registers them
    return reason


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Convolve as in ssm.reference, computed in fp32; raise ValueError if tensors don't fit each other."""
    channels = x.shape[-1]
    _check(x, weight=(weight, (channels, weight.shape[-1])), bias=(bias, (channels,)))
    return _Convolution.apply(x, weight.float(), _row(bias), reverse)


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool, dx: Tensor, add: bool
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of causal_conv1d, as a primitive of ssm.backends."""
    return torch.ops.vim_triton.causal_conv1d_backward(grad, x, weight.float(), _row(bias), reverse, dx, add)


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
    """Scan as in ssm.reference, computed in fp32; raise ValueError if tensors don't fit each other."""
    (*tokens, channels), N = u.shape, A.shape[-1]
    of_token, of_channel = (*tokens, N), (channels,)
    _check(u, delta=(delta, u.shape), A=(A, (channels, N)), B=(B, of_token), C=(C, of_token))
    _check(u, D=(D, of_channel), z=(z, u.shape), delta_bias=(delta_bias, of_channel))
    return _Scan.apply(u, delta, A.float(), B, C, _row(D), z, _row(delta_bias), reverse)


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
    """Scan, as a primitive of ssm.backends; save nothing, since the backward pass needs only the inputs."""
    add = out is not None
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device) if out is None else out
    torch.ops.vim_triton.selective_scan(u, delta, A.float(), B, C, _row(D), z, _row(delta_bias), reverse, out, add)
    return out, ()


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of selective_scan, as a primitive of ssm.backends."""
    return torch.ops.vim_triton.selective_scan_backward(
        grad, u, delta, A.float(), B, C, _row(D), z, _row(delta_bias), reverse, dB, dC, dz, add
    )


def _row(parameter: Tensor) -> Tensor:
    """Return a parameter of each channel as the kernels read it."""
    return parameter.float().contiguous()


def _check(like: Tensor, **tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raise ValueError if a tensor isn't of its shape or not on the device of `like`: kernels would read elsewhere."""
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be of shape {tuple(shape)}, not {tuple(tensor.shape)}")
        if tensor.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, not {tensor.device}")


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.reverse = reverse
        return torch.ops.vim_triton.causal_conv1d(x, weight, bias, reverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        gradients = causal_conv1d_backward(grad, x, weight, bias, reverse=ctx.reverse, dx=dx, add=False)
        return dx, *gradients, None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs) -> Tensor:
        *tensors, ctx.reverse = inputs
        ctx.save_for_backward(*tensors)
        return selective_scan_forward(*tensors, reverse=ctx.reverse)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        inputs = ctx.saved_tensors
        B, C, z = inputs[3], inputs[4], inputs[6]
        dB, dC, dz = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (B, C, z))
        du, ddelta, dA, dD, ddelta_bias = selective_scan_backward(
            grad, (), *inputs, reverse=ctx.reverse, dB=dB, dC=dC, dz=dz, add=False
        )
        return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, None
