"""Make the primitives of ssm.backends for backends whose operations have their own autograd."""

from collections.abc import Callable

import torch
from torch import Tensor


def causal_conv1d_backward(op: Callable) -> Callable:
    """Make the primitive from the operation: run it again, then backward."""

    def primitive(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool, dx: Tensor, add: bool
    ) -> tuple[Tensor, Tensor]:
        out, leaves = _recorded(op, (x, weight, bias), reverse)
        gradient, dweight, dbias = torch.autograd.grad(out, leaves, grad)
        _write(dx, gradient, add)
        return dweight, dbias

    return primitive


def selective_scan_forward(op: Callable) -> Callable:
    """Make the primitive from the operation: it saves the graph that autograd recorded, or nothing if lean."""

    def primitive(
        *inputs: Tensor, reverse: bool, out: Tensor | None = None, keep: bool = True, lean: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if keep and not lean:
            result, leaves = _recorded(op, inputs, reverse)
            saved = (result, *leaves)
        else:
            result, saved = op(*inputs, reverse=reverse), ()
        return (result.detach() if out is None else out.add_(result.detach())), saved

    return primitive


def selective_scan_backward(op: Callable) -> Callable:
    """Make the primitive from the operation: run backward through the saved graph, or through a new one."""

    def primitive(
        grad: Tensor,
        saved: tuple[Tensor, ...],
        *inputs: Tensor,
        reverse: bool,
        dB: Tensor,
        dC: Tensor,
        dz: Tensor,
        add: bool,
    ) -> tuple[Tensor, ...]:
        out, *leaves = saved or _flat(_recorded(op, inputs, reverse))
        # A saved graph is freed with the mixer's own graph, which a caller may run backward again.
        gradients = torch.autograd.grad(out, leaves, grad, retain_graph=bool(saved))
        du, ddelta, dA, grad_B, grad_C, dD, grad_z, dbias = gradients
        _write(dB, grad_B, False)
        _write(dC, grad_C, False)
        _write(dz, grad_z, add)
        return du, ddelta, dA, dD, dbias

    return primitive


def _recorded(op: Callable, inputs: tuple[Tensor, ...], reverse: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the operation with autograd; return its output, and the leaves of the output's graph."""
    with torch.enable_grad():
        leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        return op(*leaves, reverse=reverse), leaves


def _flat(recorded: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return recorded[0], *recorded[1]


def _write(buffer: Tensor, value: Tensor, add: bool) -> None:
    if add:
        buffer.add_(value)
    else:
        buffer.copy_(value)
