"""Choose which tokens fuse with which.

This is bipartite soft matching (ToMe, arXiv 2210.09461, section 3) with two additions of Famba-V (arXiv 2409.09808,
section 3) for state space models: survivors keep their order, because a scan reads a sequence, and class tokens never
fuse, wherever they are in it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.backends import in_one_operation
from fusion.merging import Matching, rows, rows_of_all
from fusion.method import Method


@torch.no_grad()
def match(
    metric: Tensor, r: int, cls_index: Tensor | None = None, method: Method = Method(), score: Tensor | None = None
) -> Matching:
    """Find in each image the r tokens that are most similar to another one, to be fused into it.

    Class tokens aside, the 1st, 3rd, 5th, ... token is a possible source, and the 2nd, 4th, 6th, ... a possible target;
    or the half with the lowest scores are possible sources, and the rest are possible targets. Each possible source is
    paired with the target that is most similar to it, and the r most similar pairs fuse. No gradient passes through the
    choice.

    Args:
        metric: [B, L, D], the vectors by which tokens are compared, in fp32 or better, under autocast too.
        r: number of tokens to fuse, at most half of the tokens that are not class tokens, rounded down.
        cls_index: [B, K], the class tokens' positions, all different, in any order; None if there are none.
        method: how to compare and order tokens: its distance, order and match are used.
        score: [B, L], how much each token is needed; None if places decide.

    Raises:
        ValueError: r is negative, or the method needs a score and there is none.
    """
    if r < 0:
        raise ValueError(f"the number of tokens to fuse must be at least 0, not {r}")
    if score is None and method.score != "place":
        raise ValueError(f"the method's `score` {method.score} is missing: give the scores of the tokens")
    B, L, _ = metric.shape
    protected = torch.empty(B, 0, dtype=torch.long, device=metric.device) if cls_index is None else cls_index
    r = min(r, (L - protected.shape[1]) // 2)
    namespace = in_one_operation(metric) if r and score is None and method.is_default_matching else None
    if namespace:
        operation = getattr(torch.ops, namespace).match
        source, target, keep, index, classes, count = operation(metric, protected, r)
        return Matching(source, target, keep, index, None if cls_index is None else classes, count)
    patches = positions_without(protected, L)
    a, b = _sources_and_targets(patches, score)
    if r == 0:
        source = target = a[:, :0]
        keep = positions_without(source, L)
    else:
        strength = -score.gather(1, a) if method.match == "lowest" else None
        source, target, unmerged = _strongest_pairs(_similarity(metric, a, b, method), a, b, r, strength)
        survivors = torch.cat((unmerged, b), dim=1)
        keep = positions_without(source, L) if method.order == "keep" else _put_back(protected, survivors, r)

    new_positions = torch.arange(L - r, device=metric.device).expand(B, -1)
    index = keep.new_empty(B, L).scatter_(1, keep, new_positions)
    target_index = index.gather(1, target)
    index.scatter_(1, source, target_index)

    count = torch.ones_like(keep).scatter_add_(1, target_index, torch.ones_like(target))
    classes = None if cls_index is None else index.gather(1, cls_index)
    moved = rows_of_all(keep, source, target, index)
    return Matching(source, target, keep, index, classes, count, moved)


def _sources_and_targets(patches: Tensor, score: Tensor | None) -> tuple[Tensor, Tensor]:
    """Halve the patches [B, P], positions in ascending order, into possible sources, the larger half, and targets."""
    if score is None:
        return patches[:, ::2], patches[:, 1::2]
    by_score = patches.gather(1, score.gather(1, patches).argsort(dim=1, stable=True))
    half = (patches.shape[1] + 1) // 2
    return by_score[:, :half].sort(dim=1).values, by_score[:, half:].sort(dim=1).values


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


def _strongest_pairs(
    similarity: Tensor, a: Tensor, b: Tensor, r: int, strength: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the r strongest pairs of a position from a [B, n] and the one from b [B, m] that is most similar to it.

    Args:
        similarity: [B, n, m].
        a: Positions of possible sources.
        b: Positions of possible targets.
        r: Number of pairs.
        strength: [B, n] for the pairs of a; None if the most similar pairs are the strongest.

    Returns:
        The pairs' positions from a and from b, both [B, r], the strongest pair first; and the rest of a [B, n - r], in
        falling order of strength.
    """
    strongest, nearest = similarity.max(dim=-1)
    by_strength = (strongest if strength is None else strength).argsort(dim=1, descending=True, stable=True)
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
    keep = others.new_empty(B, length).scatter_(1, place, ascending)
    return keep.scatter_(1, positions_without(place, length), others)


def positions_without(excluded: Tensor, length: int) -> Tensor:
    """Return the positions below length that are not in excluded [B, n], all different, ascending: [B, length - n]."""
    B, n = excluded.shape
    mask = excluded.new_zeros(B, length, dtype=torch.uint8).scatter_(1, excluded, 1)
    return mask.argsort(dim=1, stable=True)[:, : length - n]  # unlike nonzero, this never waits for a GPU


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens of x [B, L, D] at positions [B, n]: [B, n, D]."""
    return x.flatten(0, 1).index_select(0, rows(positions, x.shape[1])).unflatten(0, positions.shape)
