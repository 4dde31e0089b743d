"""Choose which tokens fuse with which, and fuse them.

This is bipartite soft matching (ToMe, arXiv 2210.09461, section 3) with two additions of Famba-V (arXiv 2409.09808,
section 3) for state space models: survivors keep their order, because a scan reads a sequence, and class tokens never
fuse, wherever they are in it.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.backends import in_one_operation
from fusion.method import Method


@dataclass(frozen=True, eq=False)
class Matching:
    """Hold how the L tokens of each of B images become L - r; `match` makes it, `merge` applies it.

    Attributes:
        source: [B, r], positions of the tokens that vanish, the most similar pair's first.
        target: [B, r], positions of the tokens that each of them fuses into.
        keep: [B, L - r], positions of the tokens that survive, in the order of the output: ascending, unless the
            method's order is `concat`.
        index: [B, L], the position of every token after merging; a source has its target's.
        cls_index: [B, K], the class tokens' positions after merging, or None.
        count: [B, L - r], the number of tokens that each merged token is made of.
        rows: the arguments of `GroupSum` beside the tokens, computed once for all tensors that are merged; None if C++
            made the matching, and then computed when needed.
    """

    source: Tensor
    target: Tensor
    keep: Tensor
    index: Tensor
    cls_index: Tensor | None
    count: Tensor
    rows: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def merge(self, x: Tensor, size: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Replace every target by the mean of itself and its sources; other survivors stay the same to the last bit.

        Means are computed in fp32 or better: in fp16 the sum of a few tokens could already overflow.

        Args:
            x: [B, L, C].
            size: [B, L], the tokens' weights in the means; None weighs all the same.

        Returns:
            [B, L - r, C]; if `size` is given, a pair of that and the summed sizes [B, L - r].
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if size is None:
            return (self.group_sum(wide) / self.count.unsqueeze(-1)).to(x.dtype)
        total = self.group_sum(size)
        share = size / total.gather(1, self.index)  # exactly 1 for a token that does not fuse
        return self.group_sum(wide * share.unsqueeze(-1).to(wide.dtype)).to(x.dtype), total

    def merge_both(
        self, hidden: Tensor, residual: Tensor, size: Tensor, by_size: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge two tensors of tokens and sum the tokens' sizes, in one operation in C++ if it can run.

        Args:
            hidden: [B, L, C].
            residual: [B, L, C].
            size: [B, L], the number of patches that each token stands for.
            by_size: Weigh tokens in the means by their size.

        Returns:
            Both [B, L - r, C], and the summed sizes [B, L - r].
        """
        exact = size.dtype in (torch.float32, torch.float64) and not size.requires_grad
        if exact and in_one_operation(hidden, residual, size):
            positions = self.keep, self.source, self.index
            hidden, residual, total = torch.ops.vim.merge(hidden, residual, size, *positions, by_size)
            return hidden, residual, total.detach()  # autograd thinks every output is differentiable
        if by_size:
            return self.merge(hidden, size)[0], *self.merge(residual, size)
        return self.merge(hidden), self.merge(residual), self.group_sum(size)

    def prune(self, x: Tensor) -> Tensor:
        """Drop the sources and leave the survivors as they are: [B, L, ...] -> [B, L - r, ...]."""
        return x.flatten(0, 1).index_select(0, self._rows()[0]).unflatten(0, self.keep.shape)

    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rows or _rows_of_all(self.keep, self.source, self.target, self.index)

    def group_sum(self, x: Tensor) -> Tensor:
        """Add every source to its target: [B, L, ...] -> [B, L - r, ...].

        Raises:
            ValueError: x doesn't have the B images and L tokens that were matched.
        """
        if x.shape[:2] != self.index.shape:
            raise ValueError(f"matched {tuple(self.index.shape)} tokens, cannot merge {tuple(x.shape[:2])}")
        return GroupSum.apply(x.flatten(0, 1), *self._rows()).unflatten(0, self.keep.shape)


class GroupSum(torch.autograd.Function):
    """Take the rows `keep` of x and add its rows `source` to rows `target` of those; `index` says where each row went.

    Only whole rows move, forward and backward, and only the sources are added: this is several times faster than
    scatter_reduce, which needs an index for every element.
    """

    @staticmethod
    def forward(x: Tensor, keep: Tensor, source: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, keep).index_add_(0, target, x.index_select(0, source))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[-1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None, None, None


@torch.no_grad()
def match(metric: Tensor, r: int, cls_index: Tensor | None = None, method: Method = Method()) -> Matching:
    """Find in each image the r tokens that are most similar to another one, to be fused into it.

    Class tokens aside, the 1st, 3rd, 5th, ... token is a possible source, and the 2nd, 4th, 6th, ... a possible target.
    Each possible source is paired with the target that is most similar to it, and the r most similar pairs fuse. No
    gradient passes through the choice.

    Args:
        metric: [B, L, D], the vectors by which tokens are compared, in fp32 or better, under autocast too.
        r: number of tokens to fuse, at most half of the tokens that are not class tokens, rounded down.
        cls_index: [B, K], the class tokens' positions, all different, in any order; None if there are none.
        method: how to compare and order tokens: its distance, order and match are used.

    Raises:
        ValueError: r is negative.
    """
    if r < 0:
        raise ValueError(f"the number of tokens to fuse must be at least 0, not {r}")
    B, L, _ = metric.shape
    protected = torch.empty(B, 0, dtype=torch.long, device=metric.device) if cls_index is None else cls_index
    r = min(r, (L - protected.shape[1]) // 2)
    if r and method.is_default_matching and in_one_operation(metric):
        source, target, keep, index, classes, count = torch.ops.vim.match(metric, protected, r)
        return Matching(source, target, keep, index, None if cls_index is None else classes, count)
    patches = positions_without(protected, L)
    a, b = patches[:, ::2], patches[:, 1::2]
    if r == 0:
        source = target = a[:, :0]
        keep = positions_without(source, L)
    else:
        source, target, unmerged = _strongest_pairs(_similarity(metric, a, b, method), a, b, r)
        survivors = torch.cat((unmerged, b), dim=1)
        keep = positions_without(source, L) if method.order == "keep" else _put_back(protected, survivors, r)

    new_positions = torch.arange(L - r, device=metric.device).expand(B, -1)
    index = torch.empty(B, L, dtype=torch.long, device=metric.device).scatter_(1, keep, new_positions)
    target_index = index.gather(1, target)
    index.scatter_(1, source, target_index)

    count = torch.ones_like(keep).scatter_add_(1, target_index, torch.ones_like(target))
    rows = _rows_of_all(keep, source, target, index)
    return Matching(source, target, keep, index, None if cls_index is None else index.gather(1, cls_index), count, rows)


def _similarity(metric: Tensor, a: Tensor, b: Tensor, method: Method) -> Tensor:
    """Return how similar each token at a [B, n] is to each at b [B, m]: [B, n, m], larger for more similar."""
    if method.match == "random":
        return torch.rand(*a.shape, b.shape[1], device=metric.device)
    with torch.autocast(metric.device.type, enabled=False):
        metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
        if method.distance == "cosine":
            # How fp32 products round depends on the number of threads, and would decide between equally similar pairs.
            unit = F.normalize(metric.double() if metric.is_cpu else metric, dim=-1)
            return (_take(unit, a) @ _take(unit, b).mT).to(metric.dtype)
        norm = {"l1": 1.0, "l2": 2.0}[method.distance]
        # The faster way, by matrix products, would lose the distance of two near tokens to rounding.
        return -torch.cdist(_take(metric, a), _take(metric, b), norm, compute_mode="donot_use_mm_for_euclid_dist")


def _strongest_pairs(similarity: Tensor, a: Tensor, b: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the r most similar pairs of a position from a [B, n] and one from b [B, m].

    Returns:
        The pairs' positions from a and from b, both [B, r], the most similar pair first; and the rest of a [B, n - r],
        in falling order of its largest similarity.
    """
    strongest, nearest = similarity.max(dim=-1)
    by_strength = strongest.argsort(dim=1, descending=True, stable=True)
    chosen, rest = by_strength[:, :r], by_strength[:, r:]
    return a.gather(1, chosen), b.gather(1, nearest.gather(1, chosen)), a.gather(1, rest)


def _put_back(protected: Tensor, others: Tensor, r: int) -> Tensor:
    """Insert the protected positions [B, K] into the others [B, n], each r places further to the front, or first."""
    B, K = protected.shape
    length = others.shape[1] + K
    ascending = protected.sort(dim=1).values
    rank = torch.arange(K, device=protected.device)
    # Positions that would get the same place get neighbouring ones.
    place = ((ascending - r).clamp(min=0) - rank).cummax(dim=1).values + rank
    keep = torch.empty(B, length, dtype=torch.long, device=protected.device).scatter_(1, place, ascending)
    return keep.scatter_(1, positions_without(place, length), others)


def positions_without(excluded: Tensor, length: int) -> Tensor:
    """Return the positions below length that are not in excluded [B, n], all different, ascending: [B, length - n]."""
    B, n = excluded.shape
    mask = torch.zeros(B, length, dtype=torch.uint8, device=excluded.device).scatter_(1, excluded, 1)
    return mask.argsort(dim=1, stable=True)[:, : length - n]  # unlike nonzero, this never waits for a GPU


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens of x [B, L, D] at positions [B, n]: [B, n, D]."""
    return x.flatten(0, 1).index_select(0, _rows(positions, x.shape[1])).unflatten(0, positions.shape)


def _rows_of_all(keep: Tensor, source: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows of survivors and sources before merging, and of targets and every token after it."""
    L, left = index.shape[1], keep.shape[1]
    return _rows(keep, L), _rows(source, L), _rows(index.gather(1, target), left), _rows(index, left)


def _rows(positions: Tensor, length: int) -> Tensor:
    """Turn positions [B, n] in sequences of that length into rows [B * n] of the sequences laid end to end."""
    starts = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1) * length
    return (positions + starts).flatten()
