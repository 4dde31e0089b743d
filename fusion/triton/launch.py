"""Launch the kernels: matching, and merging forward and backward, on tensors."""

import torch
import triton
from torch import Tensor

from fusion.triton import matching, merging
from native.kernels import check_images


def match(metric: Tensor, cls_index: Tensor, r: int) -> tuple[Tensor, ...]:
    """Return source, target, keep, index, classes and count of fusion.merging.Matching."""
    (B, L, D), K = metric.shape, cls_index.shape[1]
    check_images(B)
    P = L - K
    n, m = (P + 1) // 2, P // 2
    metric, cls_index = metric.contiguous(), cls_index.contiguous()
    dtype = torch.promote_types(metric.dtype, torch.float32)
    units = metric.new_empty(B, P, D, dtype=torch.float64 if metric.is_cpu else dtype)  # as in fusion.matching

    def positions(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.long, device=metric.device)

    patches, ranks = positions(B, P), positions(B, n)
    source, target, keep, index, classes, count = (positions(B, tokens) for tokens in (r, r, L - r, L, K, L - r))
    with torch.cuda.device_of(metric):
        matching.unite[L, B](metric, cls_index, units, patches, L, K, D, BLOCK=triton.next_power_of_2(D))
        with torch.autocast(metric.device.type, enabled=False):  # it would lower the product to half precision
            strongest, nearest = torch.bmm(units[:, :n], units[:, n:].mT).to(dtype).max(dim=-1)
        blocks = triton.cdiv(n, matching.PAIRS.value), B
        matching.rank[blocks](strongest, ranks, n)
        matching.place[blocks](
            patches, nearest, ranks, cls_index, source, target, keep, index, classes, count, L, K, n, m, r
        )  # fmt: skip
    return source, target, keep, index, classes, count


def merge(
    hidden: Tensor, residual: Tensor, size: Tensor, keep: Tensor, source: Tensor, index: Tensor, by_size: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden and residual [B, L - r, D] merged, and the summed sizes [B, L - r]."""
    left = keep.shape[1]
    merged = [x.new_empty(x.shape[0], left, x.shape[2]) for x in (hidden, residual)]
    total = size.new_empty(keep.shape)
    _launch(merging.merge, left, (hidden, residual), (size, keep, source, index), (*merged, total), by_size)
    return *merged, total


def merge_backward(
    dhidden: Tensor, dresidual: Tensor, size: Tensor, keep: Tensor, source: Tensor, index: Tensor, by_size: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden and residual [B, L, D]."""
    L = index.shape[1]
    spread = [x.new_empty(x.shape[0], L, x.shape[2]) for x in (dhidden, dresidual)]
    _launch(merging.spread, L, (dhidden, dresidual), (size, keep, source, index), spread, by_size)
    return tuple(spread)


def _launch(kernel, tokens: int, both, others, outputs, by_size: bool) -> None:
    """Launch a kernel of fusion.triton.merging, two programs for each token that it writes."""
    inputs = [x.contiguous() for x in (*both, *others)]
    _, keep, source, index = inputs[2:]
    D = both[0].shape[2]
    with torch.cuda.device_of(index):
        # Products and sums are rounded one by one, as PyTorch's are.
        kernel[tokens, index.shape[0], 2](
            *inputs, *outputs, index.shape[1], keep.shape[1], source.shape[1], D,
            BY_SIZE=by_size, BLOCK=triton.next_power_of_2(D), enable_fp_fusion=False,
        )  # fmt: skip
