"""Run all directions of the mixer as one function, whose backward pass is written on the backends' primitives.

It does for both directions what mamba-ssm's mamba_inner_fn does for one (Gu and Dao, arXiv 2312.00752). Autograd would
split, fill with zeros, concatenate and add; here all gradients go straight into one buffer.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Weights(NamedTuple):
    """Hold the parameters of one direction, with D channels, N states, a bottleneck of width R, and W taps.

    Attributes:
        conv_weight: [D, 1, W].
        conv_bias: [D].
        x_proj: [R + 2 N, D].
        dt_proj: [D, R].
        dt_bias: [D].
        A_log: [D, N].
        D: [D].
    """

    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor

    def lowered(self, dtype: torch.dtype) -> "Weights":
        """Convert the matrices to the tokens' dtype; the backend converts the rest."""
        return self._replace(x_proj=self.x_proj.to(dtype), dt_proj=self.dt_proj.to(dtype))

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split [B, L, R + 2 N], or rows of that width, into dt, B and C."""
        R, N = self.dt_proj.shape[1], self.A_log.shape[1]
        return projected.split((R, N, N), dim=-1)


def mix(xz: Tensor, directions: list[Weights], backend: ModuleType, recompute: bool = False) -> Tensor:
    """Sum the scans of x, gated by z, over all directions: first to last token, then last to first.

    Args:
        xz: [B, L, 2 D], x and z side by side.
        directions: One or two.
        backend: The module whose primitives compute.
        recompute: Recompute the convolution's output and the step sizes in the backward pass instead of saving them.

    Returns:
        [B, L, D].
    """
    parameters = [tensor for weights in directions for tensor in weights]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (xz, *parameters))
    return _Mix.apply(xz, backend, keep, recompute, *parameters)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xz: Tensor, backend: ModuleType, keep: bool, recompute: bool, *parameters: Tensor) -> Tensor:
        ctx.backend, ctx.recompute, ctx.parts = backend, recompute, []
        y, kept = None, []
        with torch.autocast(xz.device.type, enabled=False):
            for reverse, weights in enumerate(_by_direction(parameters)):
                step = _Direction(backend, xz, weights, bool(reverse))
                u = step.convolve()
                projected = u @ step.weights.x_proj.t()
                delta = step.step_sizes(projected)
                y, saved = backend.selective_scan_forward(
                    *step.scan_inputs(u, delta, projected), reverse=step.reverse, out=y, keep=keep, lean=recompute
                )
                parts = (projected, *saved) if recompute else (projected, u, delta, *saved)
                ctx.parts.append(len(parts))
                kept += parts
        if keep:
            ctx.save_for_backward(xz, *parameters, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        xz, *saved = ctx.saved_tensors
        count = len(saved) - sum(ctx.parts)
        parameters, kept = saved[:count], saved[count:]
        dxz = torch.empty_like(xz)
        gradients = []
        with torch.autocast(xz.device.type, enabled=False):
            for reverse, weights in enumerate(_by_direction(parameters)):
                projected, *rest = kept[: ctx.parts[reverse]]
                kept = kept[ctx.parts[reverse] :]
                step = _Direction(ctx.backend, xz, weights, bool(reverse))
                u, delta = (
                    (step.convolve(), step.step_sizes(projected)) if ctx.recompute else (rest.pop(0), rest.pop(0))
                )
                gradients += step.backward(grad, tuple(rest), u, delta, projected, dxz, add=bool(reverse))
        return dxz, None, None, None, *gradients


class _Direction:
    """Run the steps of one direction, forward and backward, without autograd."""

    def __init__(self, backend: ModuleType, xz: Tensor, weights: Weights, reverse: bool) -> None:
        self.backend, self.reverse = backend, reverse
        self.x, self.z = xz.chunk(2, dim=-1)
        self.weights = weights.lowered(xz.dtype)
        self.A = -torch.exp(weights.A_log)

    def convolve(self) -> Tensor:
        w = self.weights
        return self.backend.causal_conv1d(self.x, w.conv_weight.squeeze(1), w.conv_bias, reverse=self.reverse)

    def step_sizes(self, projected: Tensor) -> Tensor:
        """Compute the step sizes before bias and softplus, from projected [B, L, R + 2 N]."""
        dt = _rows(self.weights.split(projected)[0])
        return torch.mm(dt, self.weights.dt_proj.t()).view(*projected.shape[:2], -1)

    def scan_inputs(self, u: Tensor, delta: Tensor, projected: Tensor) -> tuple[Tensor, ...]:
        _, B, C = self.weights.split(projected)
        return u, delta, self.A, B, C, self.weights.D, self.z, self.weights.dt_bias

    def backward(
        self,
        grad: Tensor,
        saved: tuple[Tensor, ...],
        u: Tensor,
        delta: Tensor,
        projected: Tensor,
        dxz: Tensor,
        add: bool,
    ) -> Weights:
        """Return the gradients of the weights; write those of x and z into dxz, or add them to it if `add`."""
        dx, dz = dxz.chunk(2, dim=-1)
        dprojected = torch.empty_like(projected)
        ddt, dB, dC = self.weights.split(dprojected)
        inputs = self.scan_inputs(u, delta, projected)
        du, ddelta, dA, dD, dt_bias = self.backend.selective_scan_backward(
            grad, saved, *inputs, reverse=self.reverse, dB=dB, dC=dC, dz=dz, add=add
        )
        ddelta, rows = _rows(ddelta), _rows(dprojected)
        torch.mm(ddelta, self.weights.dt_proj, out=_rows(ddt))
        dt_proj = torch.mm(ddelta.t(), _rows(self.weights.split(projected)[0]))
        du_rows = _rows(du).addmm_(rows, self.weights.x_proj)
        x_proj = torch.mm(rows.t(), _rows(u))
        conv_weight, conv_bias = self.backend.causal_conv1d_backward(
            du_rows.view_as(du),
            self.x,
            self.weights.conv_weight.squeeze(1),
            self.weights.conv_bias,
            reverse=self.reverse,
            dx=dx,
            add=add,
        )
        return Weights(conv_weight.unsqueeze(1), conv_bias, x_proj, dt_proj, dt_bias, dA * self.A, dD)


def _by_direction(parameters: tuple[Tensor, ...]) -> list[Weights]:
    size = len(Weights._fields)
    return [Weights(*parameters[i : i + size]) for i in range(0, len(parameters), size)]


def _rows(tokens: Tensor) -> Tensor:
    """View tokens [B, L, C] as rows [B L, C], without a copy also if they are a slice of wider tokens."""
    return tokens.flatten(0, 1)
