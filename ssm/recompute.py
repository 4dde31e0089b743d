"""Less memory for more time: what autograd would keep can be made again when the backward pass asks for it."""

from collections.abc import Callable

import torch
from torch import Tensor


class Recompute(torch.autograd.graph.saved_tensors_hooks):
    """Inside this context, autograd keeps for chosen tensors how to make them instead of their values."""

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self._makers: dict[int, Callable[[], Tensor]] = {}

    def __enter__(self) -> "Recompute":
        super().__enter__()
        return self

    def instead_of_keeping(self, tensor: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Choose a tensor, which must live as long as the context; make() returns its values again."""
        self._makers[tensor.data_ptr()] = make
        return tensor

    def _pack(self, tensor: Tensor):
        make = self._makers.get(tensor.data_ptr())
        return tensor if make is None else (make, tensor.dtype, tensor.shape, tensor.stride())

    @staticmethod
    def _unpack(kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        make, dtype, shape, stride = kept
        with torch.no_grad():
            return make().to(dtype).as_strided(shape, stride)
