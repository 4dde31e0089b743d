"""Define the two operations of the state space in plain PyTorch; every other backend is tested against it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssm import by_autograd

# If a [B, L, D, N] tensor exceeds this size, the backward pass recomputes it instead, a few images at a time.
MAX_STATE_BYTES = 64 * 2**20


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Convolve over tokens, depthwise and causally, then apply SiLU.

    Args:
        x: [B, L, D].
        weight: [D, W]; the last tap multiplies the current token.
        bias: [D].
        reverse: Run from the last token to the first: each token sees itself and the W - 1 tokens after it.

    Returns:
        [B, L, D], in the dtype of x.
    """
    L, W = x.shape[1], weight.shape[1]
    padded = F.pad(x, (0, 0, 0, W - 1) if reverse else (0, 0, W - 1, 0))
    taps = weight.to(x.dtype).unbind(1)
    if reverse:
        taps = taps[::-1]
    out = bias.to(x.dtype)
    for offset, tap in enumerate(taps):
        out = torch.addcmul(out, padded[:, offset : offset + L], tap)
    return F.silu(out)


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
    """Run Mamba's selective state space recurrence (Gu and Dao, arXiv 2312.00752, section 3) over tokens, gated by z.

    With d = softplus(delta + delta_bias), every channel keeps N states:
    h_t = exp(d_t A) h_(t-1) + d_t B_t u_t and y_t = <C_t, h_t> + D u_t. The states and exponentials are fp32
    (fp64 for fp64 inputs) whatever the input dtype.

    Args:
        u: Input, [B, L, D].
        delta: Step sizes before bias and softplus, [B, L, D].
        A: State matrix, diagonal and negative, [D, N].
        B: Input projection of every token, [B, L, N].
        C: Output projection of every token, [B, L, N].
        D: Skip connection, [D].
        z: Gate, [B, L, D].
        delta_bias: [D].
        reverse: Run from the last token to the first.

    Returns:
        y * silu(z), [B, L, D], in the dtype of u.
    """
    batch, length, channels = u.shape
    state_dtype = torch.promote_types(u.dtype, torch.float32)
    state_bytes = batch * length * channels * A.shape[1] * state_dtype.itemsize
    sequences = [t.to(state_dtype) for t in (u, delta, B, C, z)]
    constants = [t.to(state_dtype) for t in (A, D, delta_bias)]
    with torch.autocast(u.device.type, enabled=False):
        if state_bytes <= MAX_STATE_BYTES:
            out = _scan(*sequences, *constants, reverse)
        else:
            images = max(1, batch * MAX_STATE_BYTES // state_bytes)
            pieces = zip(*(t.split(images) for t in sequences), strict=True)
            out = torch.cat([checkpoint(_scan, *piece, *constants, reverse, use_reentrant=False) for piece in pieces])
    return out.to(u.dtype)


def _scan(
    u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, reverse: bool
) -> Tensor:
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)  # [B, L, D, N]
    update = (dt * u).unsqueeze(-1) * B.unsqueeze(2)  # [B, L, D, N]
    # Splitting by token once keeps the backward pass linear in L; indexing inside the loop would make it quadratic.
    steps = list(zip(decay.unbind(1), update.unbind(1), C.unsqueeze(2).unbind(1), strict=True))
    if reverse:
        steps.reverse()
    h = torch.zeros_like(update[:, 0])  # [B, D, N]
    ys = []
    for decay_t, update_t, C_t in steps:
        h = torch.addcmul(update_t, decay_t, h)
        ys.append((h * C_t).sum(-1))  # [B, D]
    if reverse:
        ys.reverse()
    y = torch.stack(ys, dim=1) + D * u
    return y * F.silu(z)


causal_conv1d_backward = by_autograd.causal_conv1d_backward(causal_conv1d)
selective_scan_forward = by_autograd.selective_scan_forward(selective_scan)
selective_scan_backward = by_autograd.selective_scan_backward(selective_scan)
