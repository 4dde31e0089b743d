"""Run all directions of the mixer, forward and backward, by the primitives of a backend, without autograd."""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


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


def flat(directions: list[Weights]) -> list[Tensor]:
    """Return the parameters of all directions, one after the other."""
    return [tensor for weights in directions for tensor in weights]


class Inner(NamedTuple):
    """Hold what one direction computed on its way, with D channels and N states.

    Attributes:
        delta: Step sizes before bias and softplus, [B, L, D].
        B: Input projection of every token, [B, L, N].
        C: Output projection of every token, [B, L, N].
    """

    delta: Tensor
    B: Tensor
    C: Tensor


class Composed:
    """Mix by a backend's primitives: gradients of all directions go straight into one buffer."""

    def __init__(self, backend: ModuleType) -> None:
        self.backend = backend

    def mix_forward(
        self, xz: Tensor, parameters: list[Tensor], keep: bool, recompute: bool, inner: list[Inner] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the sum over directions, [B, L, D], and what the backward pass needs, nothing unless `keep`.

        Append to `inner`, if given, what each direction computed.
        """
        y, kept = None, []
        with torch.autocast(xz.device.type, enabled=False):
            for direction in self._directions(xz, parameters):
                u = direction.convolve()
                projected = u @ direction.weights.x_proj.t()
                delta = direction.step_sizes(projected)
                if inner is not None:
                    inner.append(Inner(delta, *direction.weights.split(projected)[1:]))
                y, saved = self.backend.selective_scan_forward(
                    *direction.scan_inputs(u, delta, projected),
                    reverse=direction.reverse,
                    out=y,
                    keep=keep,
                    lean=recompute,
                )
                if keep:
                    kept += (projected, *saved) if recompute else (projected, u, delta, *saved)
        return y, kept

    def mix_backward(
        self, grad: Tensor, xz: Tensor, parameters: list[Tensor], kept: list[Tensor], recompute: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of xz and of the parameters."""
        dxz, gradients = torch.empty_like(xz), []
        with torch.autocast(xz.device.type, enabled=False):
            directions = self._directions(xz, parameters)
            each = len(kept) // len(directions)
            for i, direction in enumerate(directions):
                projected, *saved = kept[i * each : (i + 1) * each]
                if recompute:
                    u, delta = direction.convolve(), direction.step_sizes(projected)
                else:
                    u, delta, *saved = saved
                gradients += direction.backward(grad, tuple(saved), u, delta, projected, dxz, add=i > 0)
        return dxz, gradients

    def _directions(self, xz: Tensor, parameters: list[Tensor]) -> list["_Direction"]:
        size = len(Weights._fields)
        each = [Weights(*parameters[i : i + size]) for i in range(0, len(parameters), size)]
        return [_Direction(self.backend, xz, weights, reverse=i > 0) for i, weights in enumerate(each)]


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
        return torch.mm(dt, self.weights.dt_proj.t()).view(*projected.shape[:2], len(self.weights.dt_proj))

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
        _narrow_product(ddelta, self.weights.dt_proj, out=_rows(ddt))
        dt_proj = _narrow_product(ddelta.t(), _rows(self.weights.split(projected)[0]))
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


def _narrow_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply a by b, which has few columns, by way of the transpose: on CPUs that is faster."""
    return torch.mm(b.t(), a.t(), out=None if out is None else out.t()).t()


def _rows(tokens: Tensor) -> Tensor:
    """View tokens [B, L, C] as rows [B L, C], without a copy also if they are a slice of wider tokens."""
    return tokens.flatten(0, 1)
