"""Merge hidden and residual in one kernel, and spread their gradients in another.

A program computes one token of one image, of hidden if its third number is 0 and of residual if it is 1. It adds tokens
in the order of the pairs, so the same inputs give the same bits. All tensors are contiguous.
"""

import triton
import triton.language as tl

# Don't compile a kernel for each value of these: with fusion, they differ in every layer.
NUMBERS = ["L", "left", "fused", "D"]


@triton.jit
def widen(x):
    """Return x in fp32, or in fp64 if it is."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def divide(a, b):
    """Divide as IEEE 754 rounds; for fp32, Triton's / need not."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def at(x, tokens, token):
    """Return where a token of the program's image is in x [B, tokens]."""
    return x + (tl.program_id(1).to(tl.int64) * tokens + token)


@triton.jit
def measure(merged, size, keep, source, index, L, left, fused):
    """Return how many tokens a merged token is made of, and the sum of their sizes."""
    count = 1
    total = tl.load(at(size, L, tl.load(at(keep, left, merged))))
    for i in range(fused):
        token = tl.load(at(source, fused, i))
        inside = tl.load(at(index, L, token)) == merged
        count += inside.to(tl.int32)
        total += tl.load(at(size, L, token), mask=inside, other=0.0)
    return count, total


@triton.jit
def load_part(x, token, inside, size, total, L, D, d, BY_SIZE: tl.constexpr):
    """Load a token [BLOCK], if it is inside, times its share of the total if BY_SIZE."""
    value = widen(tl.load(x + (tl.program_id(1).to(tl.int64) * L + token) * D + d, mask=(d < D) & inside, other=0.0))
    if BY_SIZE:
        value *= divide(tl.load(at(size, L, token)), total).to(value.dtype)
    return value


@triton.jit
def merge_one(
    x, out, merged, count, total, size, keep, source, index, L, left, fused, D,
    BY_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a merged token of x [B, L, D] into out [B, left, D]; a token alone is divided by 1, or its share is 1."""
    d = tl.arange(0, BLOCK)
    value = load_part(x, tl.load(at(keep, left, merged)), True, size, total, L, D, d, BY_SIZE)
    for i in range(fused):
        token = tl.load(at(source, fused, i))
        inside = tl.load(at(index, L, token)) == merged
        part = load_part(x, token, inside, size, total, L, D, d, BY_SIZE)
        value = tl.where(inside, value + part, value)  # adding zero would change the sign of minus zero
    if not BY_SIZE:
        value = divide(value, tl.full([BLOCK], 1, value.dtype) * count.to(value.dtype))
    row = tl.program_id(1).to(tl.int64) * left + merged
    tl.store(out + row * D + d, value.to(out.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=NUMBERS)
def merge(
    hidden, residual, size, keep, source, index, merged_hidden, merged_residual, merged_size, L, left, fused, D,
    BY_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    merged = tl.program_id(0)
    count, total = measure(merged, size, keep, source, index, L, left, fused)
    if tl.program_id(2) == 0:
        merge_one(
            hidden, merged_hidden, merged, count, total, size, keep, source, index, L, left, fused, D, BY_SIZE, BLOCK
        )  # fmt: skip
        tl.store(at(merged_size, left, merged), total)
    else:
        merge_one(
            residual, merged_residual, merged, count, total, size, keep, source, index, L, left, fused, D, BY_SIZE,
            BLOCK,
        )  # fmt: skip


@triton.jit
def spread_one(grad, out, token, merged, count, share, L, left, D, BY_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write into out [B, L, D] a token's part of the gradient [B, left, D] of what it is merged into."""
    d = tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    value = widen(tl.load(grad + (image * left + merged) * D + d, mask=d < D, other=0.0))
    if BY_SIZE:
        value = value * share.to(value.dtype)
    else:
        value = divide(value, tl.full([BLOCK], 1, value.dtype) * count.to(value.dtype))
    tl.store(out + (image * L + token) * D + d, value.to(out.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=NUMBERS)
def spread(
    dhidden, dresidual, size, keep, source, index, hidden, residual, L, left, fused, D,
    BY_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    merged = tl.load(at(index, L, token))
    count, total = measure(merged, size, keep, source, index, L, left, fused)
    share = divide(tl.load(at(size, L, token)), total)
    if tl.program_id(2) == 0:
        spread_one(dhidden, hidden, token, merged, count, share, L, left, D, BY_SIZE, BLOCK)
    else:
        spread_one(dresidual, residual, token, merged, count, share, L, left, D, BY_SIZE, BLOCK)
