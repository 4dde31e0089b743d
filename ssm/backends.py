"""Choose the implementation of the two operations: by name, or by the device and what is installed.

A backend is a module with `unavailable`, with the two operations `causal_conv1d` and `selective_scan` as ssm.reference
defines them, and with the primitives that the mixer's own backward pass uses. Primitives run without autograd, take x,
u, delta, B, C and z with any strides over images and tokens, and write into buffers that the caller gives:

    causal_conv1d_backward(grad, x, weight, bias, *, reverse, dx, add) -> (dweight, dbias)
        Fill dx [B, L, D], or add to it if `add`.
    selective_scan_forward(u, delta, A, B, C, D, z, delta_bias, *, reverse, out=None, keep=True, lean=False)
        -> (out, saved)
        Add to out [B, L, D] if it is given, else make it. `saved` is a tuple of tensors for the backward pass, empty
        unless `keep`; if `lean`, they hold neither u nor delta, which the mixer recomputes for the backward pass.
    selective_scan_backward(grad, saved, u, delta, A, B, C, D, z, delta_bias, *, reverse, dB, dC, dz, add)
        -> (du, ddelta, dA, dD, ddelta_bias)
        Fill dB and dC [B, L, N] and dz [B, L, D], or add to dz (but not to dB and dC) if `add`.

Buffers may be slices of wider tensors. Their channels are contiguous, and their dtype is that of the tensor whose
output or gradient they hold.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from native.kernels import DEVICE
from ssm import cpu, cuda, reference, speed, triton
from ssm.names import BACKENDS, FOR_DEVICE

_MODULES = {"reference": reference, "cpu": cpu, "triton": triton, "cuda": cuda}
_chosen = "auto"


class Choice(NamedTuple):
    """Hold which backend runs, and why.

    Attributes:
        name: `reference`, `cpu`, `triton` or `cuda`.
        reason: One line to print.
    """

    name: str
    reason: str


class use_backend:  # noqa: N801, it is called like a function
    """Choose the backend from now on, or inside a `with` block only.

    Args:
        name: One of BACKENDS; `auto` picks the fastest that is available for each device.

    Raises:
        ValueError: The name is unknown, or the backend can't run here; says what would make it run.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        if name not in BACKENDS:
            raise ValueError(f"no scan backend {name}: choose from {', '.join(BACKENDS)}")
        reason = unavailable(name)
        if reason:
            raise ValueError(f"the scan backend {name} can't run here: {reason}")
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception) -> None:
        global _chosen
        _chosen = self._previous


def unavailable(name: str) -> str | None:
    """Return in one line why a backend can't run here, None if it can."""
    return None if name in ("auto", "reference") else _MODULES[name].unavailable()


def pick(device_type: str) -> Choice:
    """Return the backend that runs on a device, and why.

    Args:
        device_type: `cpu`, `cuda`, ...

    Raises:
        ValueError: The chosen backend is for another device.
    """
    if _chosen != "auto":
        if not _runs_on(_chosen, device_type):
            raise ValueError(f"the scan backend {_chosen} doesn't run on {device_type}: choose reference or auto")
        return Choice(_chosen, "as asked for")
    candidates = FOR_DEVICE.get(device_type, ())
    usable = [name for name in candidates if not unavailable(name)]
    if not candidates:
        return Choice("reference", f"there is no other for {device_type}")
    if not usable:
        return Choice("reference", unavailable(candidates[0]))
    if len(usable) == 1:
        return Choice(usable[0], "the fastest here")
    return Choice(*speed.fastest(usable))


def _runs_on(name: str, device_type: str) -> bool:
    return name == "reference" or name in FOR_DEVICE.get(device_type, ()) or (name, device_type) == ("triton", DEVICE)


@torch._dynamo.assume_constant_result  # torch.compile keeps the choice made when it compiles
def _picked(device_type: str) -> str:
    return pick(device_type).name


def _module(device: torch.device) -> ModuleType:
    return _MODULES[_picked(device.type)]


def primitives(device: torch.device) -> ModuleType:
    """Return the module of the backend that runs on a device, for its primitives."""
    return _module(device)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Compute the depthwise causal convolution and SiLU by the chosen backend; arguments as in ssm.reference."""
    return _module(x.device).causal_conv1d(x, weight, bias, reverse=reverse)


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
    """Compute the selective scan by the chosen backend; arguments as in ssm.reference."""
    return _module(u.device).selective_scan(u, delta, A, B, C, D, z, delta_bias, reverse=reverse)
