"""Run the two operations on NVIDIA GPUs by the public functions of mamba-ssm and causal-conv1d.

These packages take channels before tokens and scan in one direction only, so this module transposes and flips.

If Hugging Face's package `kernels` is installed, VIM_HUB_KERNELS=1 in the environment takes the same functions from the
hub instead (kernels-community/mamba-ssm and causal-conv1d). That downloads code, so it is done only if asked for.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ssm import by_autograd

INSTALL = "pip install --no-build-isolation -r vim_requirements_cuda.txt"


@cache
def unavailable() -> str | None:
    """Return in one line why this backend can't run here, None if it can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    # mamba-ssm can be built without its kernels (MAMBA_SKIP_CUDA_BUILD), and says so only when called.
    packages = {"causal_conv1d": "causal-conv1d", "selective_scan_cuda": "mamba-ssm's Mamba-1 kernels"}
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing and not _from_hub():
        return f"no {missing[0]}: {INSTALL}"
    try:
        _functions()
    except Exception as error:  # importing mamba_ssm imports its language models, where anything may fail
        return f"mamba-ssm can't be imported ({type(error).__name__}: {error}): {INSTALL}"
    return None


def _from_hub() -> bool:
    """Return whether kernels of Hugging Face's hub are asked for and its package is installed."""
    return os.environ.get("VIM_HUB_KERNELS") == "1" and find_spec("kernels") is not None


@cache
def _functions():
    """Import selective_scan_fn and causal_conv1d_fn."""
    if _from_hub():
        from kernels import get_kernel

        names = {"mamba-ssm": "selective_scan_fn", "causal-conv1d": "causal_conv1d_fn"}
        return tuple(getattr(get_kernel(f"kernels-community/{name}"), function) for name, function in names.items())
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn, causal_conv1d_fn


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Convolve as in ssm.reference."""
    _, causal_conv1d_fn = _functions()
    out = causal_conv1d_fn(
        _channels_first(x, reverse), weight.to(x.dtype).contiguous(), bias.to(x.dtype), activation="silu"
    )
    return _channels_last(out, reverse)


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
    """Scan as in ssm.reference, but only in fp32, bf16 and fp16; the kernels' states are fp32."""
    selective_scan_fn, _ = _functions()
    u_, delta_, B_, C_, z_ = (_channels_first(t.to(u.dtype), reverse) for t in (u, delta, B, C, z))
    out = selective_scan_fn(
        u_, delta_, A.float(), B_, C_, D.float(), z=z_, delta_bias=delta_bias.float(), delta_softplus=True
    )
    return _channels_last(out, reverse)


def _channels_first(x: Tensor, reverse: bool) -> Tensor:
    """Turn [B, L, D] into [B, D, L], in the order of the scan."""
    return (x.flip(1) if reverse else x).transpose(1, 2).contiguous()


def _channels_last(x: Tensor, reverse: bool) -> Tensor:
    x = x.transpose(1, 2)
    return x.flip(1) if reverse else x


causal_conv1d_backward = by_autograd.causal_conv1d_backward(causal_conv1d)
selective_scan_forward = by_autograd.selective_scan_forward(selective_scan)
selective_scan_backward = by_autograd.selective_scan_backward(selective_scan)
