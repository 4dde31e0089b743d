"""Add the previous mixer's output to the residual and normalise the sum, as before every mixer."""

import torch
from torch import Tensor, fx, nn

from ssm import cpu
from ssm.backends import primitives
from ssm.eager import is_plain, runs_eagerly


def add_and_normalize(hidden: Tensor, residual: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return residual + hidden and norm(residual + hidden), all [B, L, D]; in one pass if the backend can."""
    if _in_one_pass(hidden, residual, norm):
        return torch.ops.vim.add_rms_norm(hidden, residual, norm.weight, norm.eps)[:2]
    residual = residual + hidden
    return residual, norm(residual)


def _in_one_pass(hidden: Tensor, residual: Tensor, norm: nn.Module) -> bool:
    if isinstance(hidden, fx.Proxy) or not runs_eagerly() or not is_plain(norm, nn.RMSNorm):
        return False
    if norm.weight is None or norm.eps is None:
        return False
    same = hidden.dtype == residual.dtype == norm.weight.dtype and hidden.shape == residual.shape
    return same and hidden.dtype in (torch.float32, torch.float64) and primitives(hidden.device) is cpu
