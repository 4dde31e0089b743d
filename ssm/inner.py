"""Run all directions of the mixer as one function with a backward pass of its own.

It does for both directions what mamba-ssm's mamba_inner_fn does for one (Gu and Dao, arXiv 2312.00752). Autograd would
split, fill with zeros, concatenate and add; here all gradients go straight into one buffer.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssm.composed import Composed, Inner, Weights, flat


def mix(
    xz: Tensor,
    directions: list[Weights],
    backend: ModuleType,
    recompute: bool = False,
    inner: list[Inner] | None = None,
) -> Tensor:
    """Sum the scans of x, gated by z, over all directions: first to last token, then last to first.

    Args:
        xz: [B, L, 2 D], x and z side by side.
        directions: One or two.
        backend: The module whose primitives compute.
        recompute: Recompute the convolution's output and the step sizes in the backward pass instead of saving them.
        inner: A list that receives what each direction computed, without gradients.

    Returns:
        [B, L, D].
    """
    parameters = flat(directions)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (xz, *parameters))
    return _Mix.apply(xz, Composed(backend), keep, recompute, inner, *parameters)


class _Mix(torch.autograd.Function):
    """Mix by ssm.composed."""

    @staticmethod
    def forward(
        ctx,
        xz: Tensor,
        composed: Composed,
        keep: bool,
        recompute: bool,
        inner: list[Inner] | None,
        *parameters: Tensor,
    ) -> Tensor:
        y, kept = composed.mix_forward(xz, parameters, keep, recompute, inner)
        if keep:
            ctx.composed, ctx.recompute, ctx.count = composed, recompute, len(parameters)
            ctx.save_for_backward(xz, *parameters, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        xz, *saved = ctx.saved_tensors
        parameters, kept = saved[: ctx.count], saved[ctx.count :]
        dxz, gradients = ctx.composed.mix_backward(grad, xz, parameters, kept, ctx.recompute)
        return dxz, None, None, None, None, *gradients
