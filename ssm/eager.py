"""When several operations may run as one: only if nobody records, transforms or watches them one by one."""

import torch
from torch import nn
from torch.autograd import forward_ad


def runs_eagerly() -> bool:
    """Whether operations just run: nothing compiles, exports or traces them, or takes other derivatives of them."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not recorded and not transformed


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a layer does what its class does and no more: no replacement, no hooks."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is kind and not any(hooks)
