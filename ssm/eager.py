"""Check whether several operations may run as one: only if nothing records, transforms or hooks single ones."""

import torch
from torch import nn
from torch.autograd import forward_ad


def runs_eagerly() -> bool:
    """Return whether operations just run: not compiled, exported, traced, transformed or differentiated forward."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not recorded and not transformed


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling a layer only does what its class does: it was not replaced and has no hooks."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is kind and not any(hooks)
