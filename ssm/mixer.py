"""Mix the tokens of a Vision Mamba block: two scans let every token see all the other tokens."""

import math
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssm import cpu, reference
from ssm.backends import causal_conv1d, primitives, selective_scan
from ssm.composed import Inner, Weights, flat
from ssm.eager import is_plain, runs_eagerly
from ssm.inner import mix


class SelectiveSSM(nn.Module):
    """Run one direction of the mixer: a causal convolution, then a scan whose parameters depend on the token.

    Args:
        d_inner: Channels D.
        d_state: States of each channel, N.
        d_conv: Width of the convolution in tokens, W.
        dt_rank: Width of the bottleneck from which the step sizes are projected.
        reverse: Run from the last token to the first.
    """

    def __init__(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, reverse: bool = False) -> None:
        super().__init__()
        self.d_state, self.dt_rank, self.reverse = d_state, dt_rank, reverse
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)  # holds the weights; ssm's own op convolves
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self._init_dt_proj()

    def _init_dt_proj(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
        """Initialise the step sizes as Mamba does, but only in the forward direction, like the published models.

        Results depend on it.
        """
        if self.reverse:
            nn.init.zeros_(self.dt_proj.bias)
            return
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max))
        dt = log_dt.exp().clamp(min=dt_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, x: Tensor, z: Tensor, inner: list[Inner] | None = None) -> Tensor:
        """Scan x gated by z, both [B, L, D], to [B, L, D]; append to `inner`, if given, what was computed."""
        u = causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, reverse=self.reverse)
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        delta = F.linear(dt, self.dt_proj.weight.to(dt.dtype))
        if inner is not None:
            inner.append(Inner(delta, B, C))
        A = -torch.exp(self.A_log)
        return selective_scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, reverse=self.reverse)

    def is_plain(self) -> bool:
        """Return whether its layers are those of its constructor, and none has hooks."""
        layers = {self: SelectiveSSM, self.conv1d: nn.Conv1d, self.x_proj: nn.Linear, self.dt_proj: nn.Linear}
        return all(is_plain(layer, kind) for layer, kind in layers.items())

    def weights(self) -> Weights:
        """Return its parameters, for ssm.composed."""
        conv, dt = self.conv1d, self.dt_proj
        return Weights(conv.weight, conv.bias, self.x_proj.weight, dt.weight, dt.bias, self.A_log, self.D)


class BiMamba(nn.Module):
    """Mix tokens by Vim's bidirectional mixer (arXiv 2401.09417, algorithm 1): average a forward and a backward scan.

    Args:
        embed_dim: Width of the tokens.
        d_state: States of each channel, N.
        d_conv: Width of the convolution in tokens, W.
        expand: Channels of the scan for every channel of the tokens.
        bidirectional: Run both scans; if False, only the forward one.

    Attributes:
        recompute: Recompute the convolution's output and the step sizes in the backward pass instead of saving them:
            less memory, more time.
    """

    def __init__(
        self, embed_dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, bidirectional: bool = True
    ) -> None:
        super().__init__()
        d_inner, dt_rank = expand * embed_dim, math.ceil(embed_dim / 16)
        self.recompute = False
        self.in_proj = nn.Linear(embed_dim, 2 * d_inner, bias=False)
        self.forward_ssm = SelectiveSSM(d_inner, d_state, d_conv, dt_rank)
        self.backward_ssm = SelectiveSSM(d_inner, d_state, d_conv, dt_rank, reverse=True) if bidirectional else None
        self.out_proj = nn.Linear(d_inner, embed_dim, bias=False)

    def forward(self, hidden: Tensor, parts: Sequence[str] = ()) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Mix tokens.

        Args:
            hidden: [B, L, embed_dim].
            parts: What else to return, without gradients: the step sizes `delta`, [B, L, d_inner] of each direction
                side by side; the projections `B` and `C`, [B, L, d_state] likewise; or the sum of both directions'
                scans that out_proj reads, `scan` [B, L, d_inner].

        Returns:
            [B, L, embed_dim]; if parts are asked for, a pair of that and the parts by name.
        """
        directions = [self.forward_ssm] if self.backward_ssm is None else [self.forward_ssm, self.backward_ssm]
        backend = self._backend_of_all(hidden, directions)
        weights = [direction.weights() for direction in directions] if backend else []
        if backend is cpu and set(parts) <= {"scan"} and self._mixes_in_one(hidden, weights):
            out, y = cpu.mix(hidden, self.in_proj.weight, flat(weights), self.out_proj.weight, self.recompute)
            return (out, dict.fromkeys(parts, y)) if parts else out
        xz, inner = self.in_proj(hidden), [] if set(parts) - {"scan"} else None
        if backend:
            y = mix(xz, weights, backend, self.recompute, inner)
        else:
            x, z = xz.chunk(2, dim=-1)
            y = sum(direction(x, z, inner) for direction in directions)
        # The mean of both directions: halving the narrower output is as exact as halving their sum, and half the work.
        out = self.out_proj(y)
        out = out if self.backward_ssm is None else out / 2
        return (out, {name: _part(name, y, inner, directions) for name in parts}) if parts else out

    def _backend_of_all(self, hidden: Tensor, directions: list[SelectiveSSM]) -> ModuleType | None:
        """Return the backend that computes all directions as one function, None if operations must run one by one.

        They must if they are recorded or transformed (torch.compile joins them itself), if a layer was replaced or has
        hooks, and, unless `recompute`, with the reference, which then has every derivative.
        """
        if not runs_eagerly() or not all(direction.is_plain() for direction in directions):
            return None
        backend = primitives(hidden.device)
        return None if backend is reference and not self.recompute else backend

    def _mixes_in_one(self, hidden: Tensor, weights: list[Weights]) -> bool:
        """Return whether the C++ operation takes the tokens, and the projections are those of the constructor."""
        projections = self.in_proj, self.out_proj
        plain = all(is_plain(layer, nn.Linear) and layer.bias is None for layer in projections)
        return plain and cpu.mixes_in_one(hidden, [*(layer.weight for layer in projections), *flat(weights)])


@torch.no_grad()
def _part(name: str, scan: Tensor, inner: list[Inner], directions: list[SelectiveSSM]) -> Tensor:
    """Return a part of the mixer, of all directions, by its name."""
    if name == "scan":
        return scan.detach()
    parts = [getattr(of_one, name) for of_one in inner]
    if name == "delta":
        parts = [F.softplus(delta + one.dt_proj.bias) for delta, one in zip(parts, directions, strict=True)]
    return torch.cat(parts, dim=-1)
