"""Compute the selective scan in kernels: forward, the states before each chunk, and backward.

A program is one warp, and computes one image and BLOCK channels. It runs through the tokens in order, T at a time, with
its channels' N states in registers. Forward saves nothing for the backward pass. That first runs forward again and
saves the states before every chunk of T tokens, then runs through the chunks from the last to the first, and recomputes
the states inside each.

Arguments: u, delta, z and the upstream gradient in any float dtype, with any strides over images and tokens; A as
[N, D], times log2(e), so that the decay is a power of two; B and C side by side in one tensor BC [B, L, 2 N]; A, BC, D
(here: skip) and delta's bias in fp32. N is 4, 8 or 16; other numbers of states are padded with zeros.

`zero` is always 0. It hides from the compiler how the tiles' addresses are aligned. A compiler that knew would give a
thread four channels and part of their states, and every sum over states would need shuffles.
"""

import triton
import triton.language as tl

from ssm.triton.arithmetic import (
    LN2,
    entry,
    load_sums,
    load_tokens,
    sigmoid,
    softplus,
    steps,
    store_tokens,
    sum_channels,
)

GROUP = tl.constexpr(4)  # states that the backward pass takes through a chunk together: as many as fit in registers
# Don't compile a kernel for each value of these: with fusion, L differs in every layer.
NUMBERS = ["L", "D", "zero"]
NUMBERS += [f"{tensor}_{axis}" for tensor in ("u", "delta", "z", "out", "grad", "dz") for axis in ("image", "token")]


@triton.jit
def scan_tokens(
    h, first, u, delta, z, out, BC, a, skip, bias, channels, states, mask,
    N: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Write the outputs of T tokens from number `first` on, or add to them if ADD; return the states after them.

    States are in tiles [TILE, BLOCK]. Their outputs are added tile by tile before the sum over each tile's states: a
    product and a sum are then one instruction.
    """
    last: tl.constexpr = T - 1
    # All loads before the stores: the compiler may not move a load over a store.
    us = load_tokens(u, first, last, channels, mask, T)
    deltas = load_tokens(delta, first, last, channels, mask, T)
    zs = load_tokens(z, first, last, channels, mask, T)
    sums = load_sums(out, first, last, channels, mask, T, BLOCK, ADD)
    B = BC[0] + steps(first, BC[1]) + states
    outs = ()
    for i in tl.static_range(T):
        x = us[i].to(tl.float32)
        gate = zs[i].to(tl.float32)
        dt, _ = softplus(deltas[i].to(tl.float32) + bias)
        new_h = ()
        y = tl.zeros([TILE, BLOCK], tl.float32)
        for q in tl.static_range(N // TILE):
            h_q = tl.exp2(dt[None, :] * a[q]) * h[q] + (dt * x)[None, :] * tl.load(B + q * TILE)[:, None]
            y += h_q * tl.load(B + N + q * TILE)[:, None]
            new_h += (h_q,)
        h = new_h
        B += BC[1]
        outs += (sums[i] + (tl.sum(y, axis=0) + skip * x) * (gate * sigmoid(gate)),)
    store_tokens(out, first, last, channels, mask, outs, T)
    return h


@triton.jit(do_not_specialize=NUMBERS)
def scan_forward(
    u, delta, z, A, BC, skip, bias, out,
    L, D, u_image, u_token, delta_image, delta_token, z_image, z_token,
    out_image, out_token, zero,
    N: tl.constexpr, TILE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
    REVERSE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Write out [B, L, D] = (<C, h> + skip u) silu(z), with states h starting at zero, or add it to out if ADD.

    EVEN means that BLOCK divides D.
    """
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, TILE)
    mask = tl.full([BLOCK], True, tl.int1) if EVEN else d < D
    skip_d = tl.load(skip + d, mask=mask, other=0.0)
    bias_d = tl.load(bias + d, mask=mask, other=0.0)
    u = entry(u, u_image, u_token, L, REVERSE)
    delta = entry(delta, delta_image, delta_token, L, REVERSE)
    z = entry(z, z_image, z_token, L, REVERSE)
    out = entry(out, out_image, out_token, L, REVERSE)
    BC = entry(BC, steps(L, 2 * N), 2 * N, L, REVERSE)
    a = ()
    h = ()
    for q in tl.static_range(N // TILE):
        tile = (q * TILE + n)[:, None] * D + (d + zero)[None, :]
        a += (tl.load(A + tile, mask=mask[None, :], other=0.0),)
        h += (tl.zeros([TILE, BLOCK], tl.float32),)
    for first in range(0, L - T + 1, T):
        h = scan_tokens(h, first, u, delta, z, out, BC, a, skip_d, bias_d, d, n, mask, N, TILE, T, BLOCK, ADD)
    # The rest one by one: nothing in the loop above asks where the sequence ends.
    for first in range(L // T * T, L):
        h = scan_tokens(h, first, u, delta, z, out, BC, a, skip_d, bias_d, d, n, mask, N, TILE, 1, BLOCK, ADD)


@triton.jit(do_not_specialize=NUMBERS)
def scan_states(
    u, delta, A, BC, bias, states,
    L, D, u_image, u_token, delta_image, delta_token, zero,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write the states before every chunk of T tokens: states [B, chunks, N, D]."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    mask = tl.full([BLOCK], True, tl.int1) if EVEN else d < D
    tile = n[:, None] * D + (d + zero)[None, :]
    a = tl.load(A + tile, mask=mask[None, :], other=0.0)
    bias_d = tl.load(bias + d, mask=mask, other=0.0)
    u = entry(u, u_image, u_token, L, REVERSE)
    delta = entry(delta, delta_image, delta_token, L, REVERSE)
    BC = entry(BC, steps(L, 2 * N), 2 * N, L, REVERSE)
    states += steps(tl.program_id(1), tl.cdiv(L, T)) * (N * D) + tile
    h = tl.zeros([N, BLOCK], tl.float32)
    for first in range(0, L - T, T):
        tl.store(states, h, mask=mask[None, :])
        states += N * D
        us = load_tokens(u, first, T - 1, d, mask, T)
        deltas = load_tokens(delta, first, T - 1, d, mask, T)
        B = BC[0] + steps(first, BC[1]) + n
        for i in tl.static_range(T):
            dt, _ = softplus(deltas[i].to(tl.float32) + bias_d)
            h = tl.exp2(dt[None, :] * a) * h + (dt * us[i].to(tl.float32))[None, :] * tl.load(B)[:, None]
            B += BC[1]
    tl.store(states, h, mask=mask[None, :] & (L > 0))


@triton.jit(do_not_specialize=NUMBERS)
def scan_backward(
    grad, u, delta, z, A, BC, skip, bias, states, du, ddelta, dz, dBC, dchannels,
    L, D, grad_image, grad_token, u_image, u_token, delta_image, delta_token, z_image, z_token,
    dz_image, dz_token, zero,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr,
    REVERSE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Compute all gradients; T is 4: the sums of 4 tokens, 4 states, B and C are one value for each of 32 threads.

    Write du, ddelta and dz [B, L, D], or add to dz if ADD. Gradients to which several programs contribute are written
    side by side, and the caller sums them in a fixed order: dBC [blocks of channels, B, L, 2 N], and dchannels
    [B, N + 2, D] of A, skip and bias.
    """
    SUMS: tl.constexpr = 2 * T * GROUP
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, GROUP)
    mask = tl.full([BLOCK], True, tl.int1) if EVEN else d < D
    tile = n[:, None] * D + (d + zero)[None, :]
    skip_d = tl.load(skip + d, mask=mask, other=0.0)
    bias_d = tl.load(bias + d, mask=mask, other=0.0)
    grad = entry(grad, grad_image, grad_token, L, REVERSE)
    u = entry(u, u_image, u_token, L, REVERSE)
    delta = entry(delta, delta_image, delta_token, L, REVERSE)
    z = entry(z, z_image, z_token, L, REVERSE)
    like_u = steps(L, D)
    du = entry(du, like_u, D, L, REVERSE)
    ddelta = entry(ddelta, like_u, D, L, REVERSE)
    dz = entry(dz, dz_image, dz_token, L, REVERSE)
    like_BC = steps(L, 2 * N)
    BC, BC_step = entry(BC, like_BC, 2 * N, L, REVERSE)
    dBC, _ = entry(dBC + tl.program_id(0) * tl.num_programs(1) * like_BC, like_BC, 2 * N, L, REVERSE)
    chunks = tl.cdiv(L, T)
    states += steps(tl.program_id(1), chunks) * (N * D) + tile
    dchannels += steps(tl.program_id(1), (N + 2) * D)
    # The token in a chunk, B or C, and the state in a group that each sum over channels belongs to.
    lane = tl.arange(0, SUMS)
    lane_token = lane // (2 * GROUP)
    dBC += steps(lane_token, BC_step) + lane // GROUP % 2 * N + lane % GROUP

    a = ()
    g = ()  # gradient of the states, carried from the last token to the first
    dA = ()
    for q in tl.static_range(N // GROUP):
        a += (tl.load(A + q * GROUP * D + tile, mask=mask[None, :], other=0.0),)
        g += (tl.zeros([GROUP, BLOCK], tl.float32),)
        dA += (tl.zeros([GROUP, BLOCK], tl.float32),)
    dskip = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        first = (chunks - 1 - chunk) * T
        last = L - 1 - first
        us = load_tokens(u, first, last, d, mask, T)
        deltas = load_tokens(delta, first, last, d, mask, T)
        zs = load_tokens(z, first, last, d, mask, T)
        grads = load_tokens(grad, first, last, d, mask, T)
        dz_sums = load_sums(dz, first, last, d, mask, T, BLOCK, ADD)
        chunk_BC = BC + steps(first, BC_step)
        xs = ()
        dts = ()
        slopes = ()
        dys = ()
        dgates = ()
        ys = ()
        ddts = ()  # of the step sizes, through the decay
        ddtxs = ()  # of step size times input
        for i in tl.static_range(T):
            x = us[i].to(tl.float32)
            gate = zs[i].to(tl.float32)
            # Past the end, tokens neither change the states nor have a gradient.
            upstream = tl.where(i <= last, grads[i].to(tl.float32), 0.0)
            dt, slope = softplus(deltas[i].to(tl.float32) + bias_d)
            s = sigmoid(gate)
            xs += (x,)
            dts += (tl.where(i <= last, dt, 0.0),)
            slopes += (slope,)
            dys += (upstream * (gate * s),)
            dgates += (upstream * s * (1.0 + gate * (1.0 - s)),)
            ys += (skip_d * x,)
            ddts += (tl.zeros([BLOCK], tl.float32),)
            ddtxs += (tl.zeros([BLOCK], tl.float32),)
        sums = ()
        for q in tl.static_range(N // GROUP):
            h = tl.load(states + steps(first // T * N + q * GROUP, D), mask=mask[None, :], other=0.0)
            hs = (h,)
            decays = ()
            new_ys = ()
            for i in tl.static_range(T):
                B = chunk_BC + (tl.minimum(i, last) * BC_step + q * GROUP + n)
                decay = tl.exp2(dts[i][None, :] * a[q])
                h = decay * h + (dts[i] * xs[i])[None, :] * tl.load(B)[:, None]
                hs += (h,)
                decays += (decay,)
                new_ys += (ys[i] + tl.sum(h * tl.load(B + N)[:, None], axis=0),)
            ys = new_ys
            g_q = g[q]
            dA_q = dA[q]
            products = ()  # [GROUP, BLOCK, 2] for each token: summed over channels, the gradients of B and C
            new_ddts = ()
            new_ddtxs = ()
            for i in tl.static_range(T - 1, -1, -1):
                B = chunk_BC + (tl.minimum(i, last) * BC_step + q * GROUP + n)
                g_q += dys[i][None, :] * tl.load(B + N)[:, None]
                products = (tl.join(g_q * (dts[i] * xs[i])[None, :], dys[i][None, :] * hs[i + 1]),) + products
                new_ddtxs = (ddtxs[i] + tl.sum(g_q * tl.load(B)[:, None], axis=0),) + new_ddtxs
                g_q *= decays[i]
                through_decay = g_q * hs[i]
                new_ddts = (ddts[i] + tl.sum(through_decay * a[q], axis=0),) + new_ddts
                dA_q += through_decay * dts[i][None, :]
            ddts = new_ddts
            ddtxs = new_ddtxs
            g = g[:q] + (g_q,) + g[q + 1 :]
            dA = dA[:q] + (dA_q,) + dA[q + 1 :]
            # Join tokens as pairs of pairs: the last two axes are the bits of a token's number, the higher bit first.
            joined = tl.join(tl.join(products[0], products[2]), tl.join(products[1], products[3]))
            rows = tl.reshape(tl.permute(joined, (3, 4, 2, 0, 1)), [SUMS, BLOCK])
            sums += (sum_channels(rows, SUMS, LEVELS),)
        dus = ()
        ddeltas = ()
        dzs = ()
        for i in tl.static_range(T):
            ddelta_i = (ddts[i] * LN2 + ddtxs[i] * xs[i]) * slopes[i]
            dskip += dys[i] * xs[i]
            dbias += ddelta_i
            dus += (ddtxs[i] * dts[i] + dys[i] * skip_d,)
            ddeltas += (ddelta_i,)
            dzs += (dz_sums[i] + dgates[i] * ys[i],)
        store_tokens(du, first, last, d, mask, dus, T)
        store_tokens(ddelta, first, last, d, mask, ddeltas, T)
        store_tokens(dz, first, last, d, mask, dzs, T)
        for q in tl.static_range(N // GROUP):
            tl.store(dBC + steps(first, BC_step) + q * GROUP, sums[q], mask=lane_token <= last)
    for q in tl.static_range(N // GROUP):
        tl.store(dchannels + q * GROUP * D + tile, dA[q], mask=mask[None, :])
    tl.store(dchannels + N * D + d, dskip, mask=mask)
    tl.store(dchannels + (N + 1) * D + d, dbias, mask=mask)
