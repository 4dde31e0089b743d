"""Register the launches as PyTorch operators `vim_triton::...`, which torch.compile takes into its graph as they are.

They have no autograd: the functions of ssm.triton and the mixer compute gradients themselves, which takes half the time
of autograd registered for operators.
"""

import torch

from native.kernels import DEVICE
from ssm.triton import launch

_SCAN = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias, bool reverse"
SCHEMAS = {
    "causal_conv1d": "(Tensor x, Tensor weight, Tensor bias, bool reverse) -> Tensor",
    "causal_conv1d_backward": (
        "(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool reverse, Tensor(a!) dx, bool add) -> (Tensor, Tensor)"
    ),
    "selective_scan": f"({_SCAN}, Tensor(a!) out, bool add) -> ()",
    "selective_scan_backward": (
        f"(Tensor grad, {_SCAN}, Tensor(a!) dB, Tensor(b!) dC, Tensor(c!) dz, bool add) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
}


def _like(*tensors: torch.Tensor):
    found = tuple(t.new_empty(t.shape) for t in tensors)
    return found[0] if len(found) == 1 else found


_FAKES = {
    "causal_conv1d": lambda x, weight, bias, reverse: _like(x),
    "causal_conv1d_backward": lambda grad, x, weight, bias, *rest: _like(weight, bias),
    "selective_scan": lambda *inputs: None,
    "selective_scan_backward": lambda grad, u, delta, A, B, C, D, z, delta_bias, *rest: _like(
        u, delta, A, D, delta_bias
    ),
}

library = torch.library.Library("vim_triton", "DEF")
for name, schema in SCHEMAS.items():
    library.define(name + schema)
    library.impl(name, getattr(launch, name), DEVICE.upper())
    torch.library.register_fake(f"vim_triton::{name}", _FAKES[name])
