"""What PyTorch's exporter to ONNX has to be told about fusing tokens."""

from collections.abc import Callable

import torch


def onnx_translations() -> dict[Callable, Callable]:
    """For `torch.onnx.export(..., dynamo=True, custom_translation_table=fusion.onnx_translations())`.

    Needs the package onnxscript, as the exporter itself does.
    """
    from onnxscript import FLOAT
    from onnxscript import opset18 as op

    def stable_sort(x, stable: bool = True, dim: int = -1, descending: bool = False):
        """All of a TopK, which puts the lower of two equal values' indices first."""
        count = op.Reshape(op.Gather(op.Shape(x), dim), op.Constant(value_ints=[1]))
        return op.TopK(op.Cast(x, to=FLOAT.dtype), count, axis=dim, largest=int(descending), sorted=1)

    def index_add(x, dim: int, index, source):
        """Rows of source added to the rows of x that index names."""
        return op.ScatterND(x, op.Unsqueeze(index, op.Constant(value_ints=[-1])), source, reduction="add")

    return {torch.ops.aten.sort.stable: stable_sort, torch.ops.aten.index_add.default: index_add}
