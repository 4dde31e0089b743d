"""Compute the kernels' parts: softplus, sigmoid, addresses, loads and stores of tokens, and sums over channels."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def log1p(x):
    """Return log(1 + x) for x from 0 to 1, to 5e-8 of its value: a polynomial, since 1 + x would lose a small x."""
    p = x * 5.3648166e-3 - 3.0065764e-2
    p = p * x + 7.9204492e-2
    p = p * x - 1.3753799e-1
    p = p * x + 1.9153653e-1
    p = p * x - 2.4857163e-1
    p = p * x + 3.3321324e-1
    p = p * x - 4.9999648e-1
    p = p * x + 1.0
    return p * x


@triton.jit
def softplus(x):
    """Return log(1 + e^x) and its slope, the sigmoid, from one exponential that can't overflow."""
    small = tl.exp2(-tl.abs(x) * LOG2E)
    inverse = 1.0 / (1.0 + small)
    return tl.maximum(x, 0.0) + log1p(small), tl.where(x > 0, inverse, small * inverse)


@triton.jit
def steps(count, step):
    """Return the length of `count` steps in 64 bits. Inside a chunk 32 bits do, for a third of the instructions."""
    return tl.cast(count, tl.int64) * tl.cast(step, tl.int64)


@triton.jit
def entry(x, image_stride, token_stride, L, REVERSE: tl.constexpr):
    """Return where a scan enters the program's image of x, and the step from one token to the next, in elements."""
    x += steps(tl.program_id(1), image_stride)
    if REVERSE:
        x += steps(L - 1, token_stride)
        token_stride = -token_stride
    return x, token_stride


@triton.jit
def load_tokens(x, first, last, channels, mask, T: tl.constexpr):
    """Load T tokens of x, a pair made by `entry`, from number `first` on as a tuple, each [channels].

    After number `first + last`, which lies before `first` if the sequence ended there, repeat that one.
    """
    at = x[0] + steps(first + tl.minimum(last, 0), x[1]) + channels
    tokens = ()
    for i in tl.static_range(T):
        tokens += (tl.load(at, mask=mask, other=0.0),)
        at += tl.where(i < last, x[1], 0)  # all from the first one would take more registers
    return tokens


@triton.jit
def load_sums(x, first, last, channels, mask, T: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """Load the T tokens to which results are added if ADD; else return zeros."""
    if ADD:
        return load_tokens(x, first, last, channels, mask, T)
    else:
        zeros = ()
        for _ in tl.static_range(T):
            zeros += (tl.zeros([BLOCK], tl.float32),)
        return zeros


@triton.jit
def store_tokens(x, first, last, channels, mask, values, T: tl.constexpr):
    """Write T tokens of x, a pair made by `entry`, from number `first` to the one that is `last` after it."""
    at = x[0] + steps(first, x[1]) + channels
    for i in tl.static_range(T):
        tl.store(at, values[i].to(x[0].dtype.element_ty), mask=mask & (i <= last))
        at += x[1]


@triton.jit
def sum_channels(x, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """Sum [ROWS, 2^LEVELS] to [ROWS] by halving the columns.

    tl.split needs both halves in one thread, so this compiles to one transposition through shared memory and plain
    additions: a tenth of the instructions of tl.sum, which shuffles for every row.
    """
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(x, [ROWS, 2, 1 << (LEVELS - 1 - level)])
        low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
        x = low + high
    return tl.reshape(x, [ROWS])
