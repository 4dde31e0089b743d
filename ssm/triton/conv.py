"""Compute the causal depthwise convolution with SiLU in kernels, forward and backward.

A program is one warp. It computes one image, BLOCK channels, and some chunks of T tokens, which are in registers
together with the W - 1 tokens beside them. x and the upstream gradient may have any float dtype, and any strides over
images and tokens; the weight is [W, D] and, like the bias, fp32.
"""

import triton
import triton.language as tl

from ssm.triton.arithmetic import entry, load_sums, sigmoid, steps, store_tokens

# Don't compile a kernel for each value of these: with fusion, L differs in every layer.
NUMBERS = ["L", "D", "x_image", "x_token", "grad_image", "grad_token", "dx_image", "dx_token"]


@triton.jit
def load_padded(x, step, first, L, channels, mask, T: tl.constexpr):
    """Load T tokens from number `first` on as a tuple, each [channels] in fp32; zeros outside of the sequence."""
    x += steps(first, step)
    tokens = ()
    for i in tl.static_range(T):
        token = first + i
        value = tl.load(x + (i * step + channels), mask=mask & (token >= 0) & (token < L), other=0.0)
        tokens += (value.to(tl.float32),)
    return tokens


@triton.jit
def load_taps(weight, channels, mask, D, W: tl.constexpr):
    taps = ()
    for j in tl.static_range(W):
        taps += (tl.load(weight + j * D + channels, mask=mask, other=0.0),)
    return taps


@triton.jit
def convolve(xs, taps, bias, T: tl.constexpr, W: tl.constexpr):
    """Convolve at T tokens, given as `xs` after their W - 1 predecessors; return a tuple."""
    outs = ()
    for i in tl.static_range(T):
        total = bias
        for j in tl.static_range(W):
            total += taps[j] * xs[i + j]
        outs += (total,)
    return outs


@triton.jit(do_not_specialize=NUMBERS)
def conv_forward(
    x, weight, bias, out, L, D, x_image, x_token,
    W: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write out [B, L, D] = silu(convolution); EVEN means that BLOCK divides D."""
    first = tl.program_id(0) * T
    d = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = tl.full([BLOCK], True, tl.int1) if EVEN else d < D
    taps = load_taps(weight, d, mask, D, W)
    bias_d = tl.load(bias + d, mask=mask, other=0.0)
    x, x_step = entry(x, x_image, x_token, L, REVERSE)
    out = entry(out, steps(L, D), D, L, REVERSE)
    xs = load_padded(x, x_step, first - (W - 1), L, d, mask, T + W - 1)
    sums = convolve(xs, taps, bias_d, T, W)
    outs = ()
    for i in tl.static_range(T):
        outs += (sums[i] * sigmoid(sums[i]),)
    store_tokens(out, first, L - 1 - first, d, mask, outs, T)


@triton.jit(do_not_specialize=NUMBERS)
def conv_backward(
    grad, x, weight, bias, dx, dchannels, L, D, grad_image, grad_token, x_image, x_token, dx_image, dx_token,
    W: tl.constexpr, T: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
    REVERSE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Compute all gradients: write dx [B, L, D], or add to it if ADD.

    Write partial gradients of weight and bias into dchannels [parts of L, B, W + 1, D], which the caller sums in a
    fixed order.
    """
    part = tl.program_id(0)
    d = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = tl.full([BLOCK], True, tl.int1) if EVEN else d < D
    x, x_step = entry(x, x_image, x_token, L, REVERSE)
    grad, grad_step = entry(grad, grad_image, grad_token, L, REVERSE)
    dx = entry(dx, dx_image, dx_token, L, REVERSE)
    dchannels += steps(part * tl.num_programs(1) + tl.program_id(1), (W + 1) * D)
    taps = load_taps(weight, d, mask, D, W)
    bias_d = tl.load(bias + d, mask=mask, other=0.0)
    dtaps = ()
    for _ in tl.static_range(W):
        dtaps += (tl.zeros([BLOCK], tl.float32),)
    dbias = tl.zeros([BLOCK], tl.float32)
    for chunk in range(CHUNKS):
        first = (part * CHUNKS + chunk) * T
        # A token's gradient comes from its own output and the W - 1 after it; these need the W - 1 tokens before them.
        xs = load_padded(x, x_step, first - (W - 1), L, d, mask, T + 2 * (W - 1))
        grads = load_padded(grad, grad_step, first, L, d, mask, T + W - 1)
        dx_sums = load_sums(dx, first, L - 1 - first, d, mask, T, BLOCK, ADD)
        sums = convolve(xs, taps, bias_d, T + W - 1, W)
        dsums = ()
        for i in tl.static_range(T + W - 1):
            s = sigmoid(sums[i])
            dsums += (grads[i] * s * (1.0 + sums[i] * (1.0 - s)),)
        dxs = ()
        for i in tl.static_range(T):
            total = dx_sums[i]
            for j in tl.static_range(W):
                total += taps[j] * dsums[i + W - 1 - j]
            dxs += (total,)
            dbias += dsums[i]
        store_tokens(dx, first, L - 1 - first, d, mask, dxs, T)
        new_dtaps = ()
        for j in tl.static_range(W):
            total = dtaps[j]
            for i in tl.static_range(T):
                total += dsums[i] * xs[i + j]
            new_dtaps += (total,)
        dtaps = new_dtaps
    for j in tl.static_range(W):
        tl.store(dchannels + j * D + d, dtaps[j], mask=mask)
    tl.store(dchannels + W * D + d, dbias, mask=mask)
