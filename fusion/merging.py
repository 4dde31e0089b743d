"""Fuse the tokens that were matched, each group of them into its mean, or drop those that vanish."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion.backends import in_one_operation, is_transformed


@dataclass(frozen=True, eq=False)
class Matching:
    """Hold how the L tokens of each of B images become L - r; `match` makes it, `merge` applies it.

    Attributes:
        source: [B, r], positions of the tokens that vanish, the strongest pair's first.
        target: [B, r], positions of the tokens that each of them fuses into.
        keep: [B, L - r], positions of the tokens that survive, in the order of the output: ascending, unless the
            method's order is `concat`.
        index: [B, L], the position of every token after merging; a source has its target's.
        cls_index: [B, K], the class tokens' positions after merging, or None.
        count: [B, L - r], the number of tokens that each merged token is made of.
        rows: the arguments of `GroupSum` beside the tokens, computed once for all tensors that are merged; None if C++
            or Triton made the matching, and then computed when needed.
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
        """Merge two tensors of tokens and sum the tokens' sizes, in one operation in C++ or Triton if it can run.

        Args:
            hidden: [B, L, C].
            residual: [B, L, C].
            size: [B, L], the number of patches that each token stands for.
            by_size: Weigh tokens in the means by their size.

        Returns:
            Both [B, L - r, C], and the summed sizes [B, L - r].
        """
        exact = size.dtype in (torch.float32, torch.float64) and not size.requires_grad
        namespace = in_one_operation(hidden, residual, size) if exact else None
        if namespace:
            positions = self.keep, self.source, self.index
            return getattr(torch.ops, namespace).merge(hidden, residual, size, *positions, by_size)
        if by_size:
            return self.merge(hidden, size)[0], *self.merge(residual, size)
        return self.merge(hidden), self.merge(residual), self.group_sum(size)

    def prune(self, x: Tensor) -> Tensor:
        """Drop the sources and leave the survivors as they are: [B, L, ...] -> [B, L - r, ...]; raises as group_sum."""
        self._check(x)
        return x.flatten(0, 1).index_select(0, self._rows()[0]).unflatten(0, self.keep.shape)

    def _check(self, x: Tensor) -> None:
        if x.shape[:2] != self.index.shape:
            raise ValueError(f"matched {tuple(self.index.shape)} tokens, not {tuple(x.shape[:2])}")

    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rows or rows_of_all(self.keep, self.source, self.target, self.index)

    def group_sum(self, x: Tensor) -> Tensor:
        """Add every source to its target: [B, L, ...] -> [B, L - r, ...].

        Raises:
            ValueError: x doesn't have the B images and L tokens that were matched.
        """
        self._check(x)
        add_up = GroupSum.forward if is_transformed() else GroupSum.apply
        return add_up(x.flatten(0, 1), *self._rows()).unflatten(0, self.keep.shape)


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


def rows_of_all(keep: Tensor, source: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows of survivors and sources before merging, and of targets and every token after it."""
    L, left = index.shape[1], keep.shape[1]
    return rows(keep, L), rows(source, L), rows(index.gather(1, target), left), rows(index, left)


def rows(positions: Tensor, length: int) -> Tensor:
    """Turn positions [B, n] in sequences of that length into rows [B * n] of the sequences laid end to end."""
    starts = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1) * length
    return (positions + starts).flatten()
