"""Match and merge in C++ on CPUs: one operation for each, as fusion.matching and fusion.merging define them."""

from functools import cache
from pathlib import Path

import torch

from native import load_library


@cache
def unavailable() -> str | None:
    """Return in one line why the operations can't run here, None if they can. The first call compiles them."""
    try:
        # Products and sums are rounded one by one, as PyTorch's are.
        load_library(Path(__file__).parent, "fusion", flags=["-ffp-contract=off"])
    except RuntimeError as error:
        return str(error)
    _register()
    return None


def _register() -> None:
    """Tell PyTorch the operations' shapes, for torch.compile; csrc/gradients.cpp has their gradients."""
    library = torch.library

    @library.register_fake("vim::match")
    def _(metric, cls_index, r):
        B, L, _ = metric.shape
        shapes = ((B, r), (B, r), (B, L - r), (B, L), cls_index.shape, (B, L - r))
        return tuple(cls_index.new_empty(shape) for shape in shapes)

    def like(x, tokens):
        return x.new_empty(x.shape[0], tokens, x.shape[2])

    @library.register_fake("vim::merge")
    def _(hidden, residual, size, keep, source, index, by_size):
        return like(hidden, keep.shape[1]), like(residual, keep.shape[1]), size.new_empty(keep.shape)

    @library.register_fake("vim::merge_backward")
    def _(dhidden, dresidual, size, keep, source, index, by_size):
        return like(dhidden, index.shape[1]), like(dresidual, index.shape[1])
