"""Launch the kernels: the two operations, forward and backward, on tensors."""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from native.kernels import check_images
from ssm.triton import conv, scan

LOG2E = 1.4426950408889634
FORWARD_TOKENS, BACKWARD_TOKENS = 8, 4  # tokens that the scan unrolls: as many as fit in registers
CONV_TOKENS, CONV_CHUNKS, CONV_BLOCK = 8, 4, 64
MAX_STATES = 16  # in one launch; more states take several scans, whose outputs are added


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """Convolve as in ssm.reference; weight and bias are fp32."""
    x = _channels_together(x)
    batch, length, channels = x.shape
    check_images(batch)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        conv.conv_forward[triton.cdiv(length, CONV_TOKENS), batch, triton.cdiv(channels, CONV_BLOCK)](
            x, weight.t().contiguous(), bias, out, length, channels, *x.stride()[:2],
            W=weight.shape[1], T=CONV_TOKENS, BLOCK=CONV_BLOCK, EVEN=channels % CONV_BLOCK == 0, REVERSE=reverse,
            num_warps=1,
        )  # fmt: skip
    return out


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, dx: Tensor, add: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias; write that of x into dx, or add it to dx if `add`."""
    grad, x = _channels_together(grad), _channels_together(x)
    batch, length, channels = x.shape
    width = weight.shape[1]
    parts = triton.cdiv(length, CONV_TOKENS * CONV_CHUNKS)
    sums = torch.empty(parts, batch, width + 1, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        conv.conv_backward[parts, batch, triton.cdiv(channels, CONV_BLOCK)](
            grad, x, weight.t().contiguous(), bias, dx, sums, length, channels,
            *grad.stride()[:2], *x.stride()[:2], *dx.stride()[:2],
            W=width, T=CONV_TOKENS, CHUNKS=CONV_CHUNKS, BLOCK=CONV_BLOCK, EVEN=channels % CONV_BLOCK == 0,
            REVERSE=reverse, ADD=add, num_warps=1,
        )  # fmt: skip
    sums = sums.sum((0, 1))
    return sums[:width].t().contiguous(), sums[width].clone()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    reverse: bool,
    out: Tensor,
    add: bool,
) -> None:
    """Write the scan of ssm.reference into out, or add it to out if `add`; A, D and delta_bias are fp32."""
    u, delta, z = map(_channels_together, (u, delta, z))
    batch, length, channels = u.shape
    check_images(batch)
    groups = _groups_of_states(A, B, C, D)
    one_pass = len(groups) == 1 or out.dtype == torch.float32
    sums = out if one_pass else torch.zeros(out.shape, dtype=torch.float32, device=u.device)
    for i, (A_i, B_i, C_i, D_i) in enumerate(groups):
        a, BC, shape = _prepare(A_i, B_i, C_i, u)
        tile = min(shape["N"], 128 // shape["BLOCK"])  # four values to a thread
        with torch.cuda.device_of(u):
            scan.scan_forward[triton.cdiv(channels, shape["BLOCK"]), batch](
                u, delta, z, a, BC, D_i, delta_bias, sums, length, channels,
                *u.stride()[:2], *delta.stride()[:2], *z.stride()[:2], *sums.stride()[:2], 0,
                TILE=tile, T=FORWARD_TOKENS, REVERSE=reverse, ADD=i > 0 or (add and one_pass), **shape,
            )  # fmt: skip
    if not one_pass:
        out.copy_(out + sums if add else sums)


def selective_scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    reverse: bool,
    dB: Tensor,
    dC: Tensor,
    dz: Tensor,
    add: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, D and delta_bias; write dB, dC and dz, or add to dz if `add`."""
    grad, u, delta, z = map(_channels_together, (grad, u, delta, z))
    groups = _groups_of_states(A, B, C, D)
    if len(groups) == 1:
        du, ddelta, sums, sums_BC = _scan_backward(grad, u, delta, A, B, C, D, z, delta_bias, reverse, dz, add)
        dA = sums[: A.shape[1]]
    else:
        dz_sums = torch.zeros(dz.shape, dtype=torch.float32, device=u.device)
        u32, delta32 = u.float(), delta.float()  # so that their gradients are fp32, to be summed
        found = [_scan_backward(grad, u32, delta32, *group, z, delta_bias, reverse, dz_sums, True) for group in groups]
        du, ddelta = (torch.stack(parts).sum(0) for parts in list(zip(*found, strict=True))[:2])
        sums = found[0][2]
        sums[-1] = torch.stack([part[2][-1] for part in found]).sum(0)
        dA = torch.cat([part[2][: group[0].shape[1]] for part, group in zip(found, groups, strict=True)])
        sums_BC = torch.cat([part[3] for part in found], dim=-1)
        dz.copy_(dz + dz_sums if add else dz_sums)
    dB.copy_(sums_BC[:, :, 0, : A.shape[1]])
    dC.copy_(sums_BC[:, :, 1, : A.shape[1]])
    return du.to(u.dtype), ddelta.to(delta.dtype), dA.t().contiguous(), sums[-2].clone(), sums[-1].clone()


def _scan_backward(grad, u, delta, A, B, C, D, z, delta_bias, reverse, dz, add) -> tuple[Tensor, ...]:
    """Return du, ddelta, the gradients of A, D and delta_bias as rows [N + 2, D], and of B and C as [B, L, 2, N]."""
    batch, length, channels = u.shape
    a, BC, shape = _prepare(A, B, C, u)
    block, states = shape["BLOCK"], shape["N"]
    blocks, chunks = triton.cdiv(channels, block), triton.cdiv(length, BACKWARD_TOKENS)
    du, ddelta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta))
    kept = A.new_empty(batch, chunks, states, channels)
    sums_BC, sums = A.new_empty(blocks, batch, length, 2, states), A.new_empty(batch, states + 2, channels)
    with torch.cuda.device_of(u):
        scan.scan_states[blocks, batch](
            u, delta, a, BC, delta_bias, kept, length, channels, *u.stride()[:2], *delta.stride()[:2], 0,
            T=BACKWARD_TOKENS, REVERSE=reverse, **shape,
        )  # fmt: skip
        scan.scan_backward[blocks, batch](
            grad, u, delta, z, a, BC, D, delta_bias, kept, du, ddelta, dz, sums_BC, sums, length, channels,
            *grad.stride()[:2], *u.stride()[:2], *delta.stride()[:2], *z.stride()[:2], *dz.stride()[:2], 0,
            T=BACKWARD_TOKENS, LEVELS=block.bit_length() - 1, REVERSE=reverse, ADD=add, **shape,
        )  # fmt: skip
    return du, ddelta, sums.sum(0), sums_BC.sum(0)


def _groups_of_states(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> list[tuple[Tensor, ...]]:
    """Split the states into groups that fit one launch; only the first has D: outputs add up, and D u counts once."""
    groups = zip(*(t.split(MAX_STATES, dim=-1) for t in (A, B, C)), strict=True)
    return [(*group, D if i == 0 else torch.zeros_like(D)) for i, group in enumerate(groups)]


def _channels_together(x: Tensor) -> Tensor:
    """Return x as the kernels take it: a token's channels contiguous, and offsets over 16 tokens below 2^31."""
    return x if x.stride(-1) == 1 and x.stride(1) < 2**27 else x.contiguous()


def _prepare(A: Tensor, B: Tensor, C: Tensor, u: Tensor) -> tuple[Tensor, Tensor, dict]:
    """Return A and BC as the kernels take them, with states padded to 4, 8 or 16, and the launch's constants."""
    N, channels = A.shape[1], u.shape[2]
    states = max(4, triton.next_power_of_2(N))
    a, BC = A.t() * LOG2E, torch.stack((B, C), dim=2).float()
    if states > N:
        a, BC = F.pad(a, (0, 0, 0, states - N)), F.pad(BC, (0, states - N))
    block = block_width(u.shape[0], channels, _schedulers(u.device))
    return a.contiguous(), BC, {"N": states, "BLOCK": block, "EVEN": channels % block == 0, "num_warps": 1}


def block_width(batch: int, channels: int, schedulers: int) -> int:
    """Return the channels of one program: 32, one for each thread, or 8 if the GPU would otherwise be half idle.

    Four threads then share a channel's states, and a program has 0.5 to 0.6 of the instructions (docs/gpu.md), so four
    times as many programs are faster as long as schedulers are free.
    """
    return 8 if batch * triton.cdiv(channels, 8) <= schedulers * 3 // 2 else 32


def _schedulers(device: torch.device) -> int:
    """Return how many warps a GPU can issue instructions of at a time; an H200's number if there is no GPU."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return 4 * processors
