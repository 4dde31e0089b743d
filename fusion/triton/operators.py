"""Register the launches as PyTorch operators `vim_fusion::...`, with gradients."""

import torch

from fusion import shapes
from fusion.triton import launch
from native.kernels import DEVICE

_MERGE = "Tensor size, Tensor keep, Tensor source, Tensor index, bool by_size"
SCHEMAS = {
    "match": "(Tensor metric, Tensor cls_index, int r) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "merge": f"(Tensor hidden, Tensor residual, {_MERGE}) -> (Tensor, Tensor, Tensor)",
    "merge_backward": f"(Tensor dhidden, Tensor dresidual, {_MERGE}) -> (Tensor, Tensor)",
}

library = torch.library.Library("vim_fusion", "DEF")
for name, schema in SCHEMAS.items():
    library.define(name + schema)
    library.impl(name, getattr(launch, name), DEVICE.upper())
shapes.register("vim_fusion")


def setup(ctx, inputs, output):
    _, _, *tensors, ctx.by_size = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*output[2:])  # the summed sizes of merge


def backward(ctx, dhidden, dresidual, _):
    gradients = torch.ops.vim_fusion.merge_backward(dhidden, dresidual, *ctx.saved_tensors, ctx.by_size)
    return *gradients, None, None, None, None, None


def backward_of_backward(ctx, hidden, residual):
    """Merge the gradients: merging is linear, so the adjoint of its adjoint is merging."""
    merged = torch.ops.vim_fusion.merge(hidden, residual, *ctx.saved_tensors, ctx.by_size)
    return *merged[:2], None, None, None, None, None


torch.library.register_autograd("vim_fusion::merge", backward, setup_context=setup)
torch.library.register_autograd("vim_fusion::merge_backward", backward_of_backward, setup_context=setup)
