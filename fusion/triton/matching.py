"""Match tokens around one matrix product: unit vectors before it, and places after it.

Nothing is sorted: a pair's rank is the number of stronger pairs, a token's place the number of survivors before it. All
tensors are contiguous, all positions int64. Of n possible sources and m possible targets, number i is the token at
patches[i] and at patches[n + i].
"""

import triton
import triton.language as tl

# Don't compile a kernel for each value of these: with fusion, they differ in every layer.
NUMBERS = ["L", "K", "D", "n", "m", "r"]
PAIRS = tl.constexpr(32)  # pairs that a program compares at once


@triton.jit(do_not_specialize=NUMBERS)
def unite(metric, protected, units, patches, L, K, D, BLOCK: tl.constexpr):
    """Write unit vectors of the patches [B, L - K, D] and their positions [B, L - K], all possible sources first.

    A program writes one token, or nothing if it is protected: if protected [B, K] holds its position.
    """
    token, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    number, is_patch = token, token >= 0
    for k in range(K):
        other = tl.load(protected + image * K + k)
        number -= (other < token).to(tl.int32)
        is_patch = is_patch & (other != token)
    place = image * (L - K) + number // 2 + number % 2 * ((L - K + 1) // 2)
    d = tl.arange(0, BLOCK)
    x = tl.load(metric + (image * L + token) * D + d, mask=d < D, other=0.0).to(units.dtype.element_ty)
    x = x / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-12)
    tl.store(patches + place, token, mask=is_patch)
    tl.store(units + place * D + d, x, mask=(d < D) & is_patch)


@triton.jit
def load_strength(strongest, image, i, n):
    """Load cosines, and 2 for those that are not a number: as in a sort, they come first."""
    strength = tl.load(strongest + image * n + i, mask=i < n, other=-2.0)
    return tl.where(strength == strength, strength, 2.0)


@triton.jit(do_not_specialize=NUMBERS)
def rank(strongest, ranks, n):
    """Write the number of pairs that are stronger, or as strong and before: ranks [B, n] of strongest [B, n]."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mine = load_strength(strongest, image, i, n)
    stronger = tl.zeros([PAIRS], tl.int32)
    for first in range(0, n, PAIRS):
        j = first + tl.arange(0, PAIRS)
        others = load_strength(strongest, image, j, n)
        first_of_equals = (others[None, :] == mine[:, None]) & (j[None, :] < i[:, None])
        stronger += tl.sum(((others[None, :] > mine[:, None]) | first_of_equals).to(tl.int32), axis=1)
    tl.store(ranks + image * n + i, stronger, mask=i < n)


@triton.jit(do_not_specialize=NUMBERS)
def place(
    patches, nearest, ranks, protected, source, target, keep, index, classes, count, L, K, n, m, r,
):  # fmt: skip
    """Write a matching, whose tensors fusion.merging describes, from the pairs' nearest targets and ranks, both [B, n].

    A program places PAIRS possible sources and as many possible targets; the first one of an image, also its protected
    tokens.
    """
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    patches += image * (n + m)
    nearest += image * n
    ranks += image * n
    keep += image * (L - r)
    count += image * (L - r)
    index += image * L
    mine = tl.load(ranks + i, mask=i < n, other=r)
    partner = tl.load(nearest + i, mask=i < n, other=0)
    before = tl.zeros([PAIRS], tl.int32)  # sources before possible source i
    before_partner = tl.zeros([PAIRS], tl.int32)  # and before the target that it is nearest to
    sources = tl.zeros([PAIRS], tl.int32)  # of target i
    for first in range(0, n, PAIRS):
        j = first + tl.arange(0, PAIRS)
        vanishes = (tl.load(ranks + j, mask=j < n, other=r) < r)[None, :]
        theirs = tl.load(nearest + j, mask=j < n, other=0)
        before += tl.sum((vanishes & (j[None, :] < i[:, None])).to(tl.int32), axis=1)
        before_partner += tl.sum((vanishes & (j[None, :] <= partner[:, None])).to(tl.int32), axis=1)
        sources += tl.sum((vanishes & (theirs[None, :] == i[:, None])).to(tl.int32), axis=1)

    a = tl.load(patches + i, mask=i < n, other=0)
    b = tl.load(patches + n + i, mask=i < m, other=0)
    b_place = b - before - (mine < r).to(tl.int32)
    tl.store(index + b, b_place, mask=i < m)
    tl.store(keep + b_place, b, mask=i < m)
    tl.store(count + b_place, 1 + sources, mask=i < m)
    partner_at = tl.load(patches + n + partner, mask=i < n, other=0)
    fuses, stays = (i < n) & (mine < r), (i < n) & (mine >= r)
    tl.store(source + image * r + mine, a, mask=fuses)
    tl.store(target + image * r + mine, partner_at, mask=fuses)
    tl.store(index + a, partner_at - before_partner, mask=fuses)
    tl.store(index + a, a - before, mask=stays)
    tl.store(keep + a - before, a, mask=stays)
    tl.store(count + a - before, 1, mask=stays)
    if tl.program_id(0) == 0:
        for k in range(K):
            c = tl.load(protected + image * K + k)
            vanished = tl.zeros([PAIRS], tl.int32)
            for first in range(0, n, PAIRS):
                j = first + tl.arange(0, PAIRS)
                a_j = tl.load(patches + j, mask=j < n, other=L)
                vanished += ((tl.load(ranks + j, mask=j < n, other=r) < r) & (a_j < c)).to(tl.int32)
            c_place = c - tl.sum(vanished, axis=0)
            tl.store(index + c, c_place)
            tl.store(keep + c_place, c)
            tl.store(count + c_place, 1)
            tl.store(classes + image * K + k, c_place)
