"""Tell PyTorch what the operations that match and merge return, in C++ and in Triton."""

import torch


def register(namespace: str) -> None:
    """Register the shapes of a namespace's operations, for torch.compile."""
    library = torch.library

    @library.register_fake(f"{namespace}::match")
    def _(metric, cls_index, r):
        B, L, _ = metric.shape
        shapes = ((B, r), (B, r), (B, L - r), (B, L), cls_index.shape, (B, L - r))
        return tuple(cls_index.new_empty(shape) for shape in shapes)

    def like(x, tokens):
        return x.new_empty(x.shape[0], tokens, x.shape[2])

    @library.register_fake(f"{namespace}::merge")
    def _(hidden, residual, size, keep, source, index, by_size):
        return like(hidden, keep.shape[1]), like(residual, keep.shape[1]), size.new_empty(keep.shape)

    @library.register_fake(f"{namespace}::merge_backward")
    def _(dhidden, dresidual, size, keep, source, index, by_size):
        return like(dhidden, index.shape[1]), like(dresidual, index.shape[1])
