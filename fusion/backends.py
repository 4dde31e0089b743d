"""Choose the implementation of matching and merging: the definition in PyTorch's operations, or C++ or Triton."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusion import cpu, triton
from native.kernels import DEVICE

BACKENDS = ("auto", "reference", "cpu", "triton")
# The module of a backend, the device it is for, and the namespace of its operations.
_IN_ONE_OPERATION = {"cpu": (cpu, "cpu", "vim"), "triton": (triton, DEVICE, "vim_fusion")}
_chosen = "auto"


def use_backend(name: str) -> None:
    """Choose the backend from now on: `auto` takes C++ on a CPU and Triton on a GPU if available, else the definition.

    Raises:
        ValueError: The name is unknown, or the backend can't run here; says what would make it run.
    """
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"no fusion backend {name}: choose from {', '.join(BACKENDS)}")
    if name in _IN_ONE_OPERATION and (reason := _IN_ONE_OPERATION[name][0].unavailable()):
        raise ValueError(f"the fusion backend {name} can't run here: {reason}")
    _chosen = name


@contextmanager
def backend(name: str):
    """Choose the backend inside a `with` block only."""
    before = _chosen
    use_backend(name)
    try:
        yield
    finally:
        use_backend(before)


@torch._dynamo.assume_constant_result  # torch.compile keeps the choice made when it compiles
def _picked(device_type: str) -> str | None:
    for name, (module, device, namespace) in _IN_ONE_OPERATION.items():
        if _chosen in ("auto", name) and device == device_type and not module.unavailable():
            return namespace
    return None


def prepare(device_type: str) -> None:
    """Compile now what matching and merging need on such a device, so that no batch waits for it."""
    _picked(device_type)


def in_one_operation(*tensors: Tensor) -> str | None:
    """Return the namespace whose operations can process these tensors, None if only the definition can.

    Exported programs are made of PyTorch's own operations.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed():
        return None
    device_type = tensors[0].device.type
    return _picked(device_type) if all(tensor.device.type == device_type for tensor in tensors) else None


def is_transformed() -> bool:
    """Return whether torch.func or forward mode differentiates or maps, which the operations' gradients can't do."""
    in_func = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return in_func or forward_ad._current_level >= 0
