"""Tell PyTorch's exporter to ONNX how to translate the operations that fuse tokens."""

from collections.abc import Callable

import torch


def onnx_translations() -> dict[Callable, Callable]:
    """Build the table for `torch.onnx.export(..., dynamo=True, custom_translation_table=fusion.onnx_translations())`.

    Raises:
        ImportError: The exporter's packages are not installed.
    """
    try:
        from onnxscript import INT32
        from onnxscript import opset18 as op
    except ImportError:
        raise ImportError("exporting to ONNX needs its packages: pip install onnx onnxscript onnxruntime") from None

    def stable_sort(x, stable: bool = True, dim: int = -1, descending: bool = False):
        """Sort by TopK, which puts the lower index of equal values first; ONNX Runtime's TopK doesn't take bytes."""
        count = op.Reshape(op.Gather(op.Shape(x), dim), op.Constant(value_ints=[1]))
        comparable = op.Cast(x, to=INT32.dtype) if x.dtype.itemsize == 1 else x
        values, indices = op.TopK(comparable, count, axis=dim, largest=int(descending), sorted=1)
        return op.CastLike(values, x), indices

    def index_add(x, dim: int, index, source):
        """Add the rows of source to the rows of x that index names."""
        return op.ScatterND(x, op.Unsqueeze(index, op.Constant(value_ints=[-1])), source, reduction="add")

    return {torch.ops.aten.sort.stable: stable_sort, torch.ops.aten.index_add.default: index_add}
