"""Choose the implementation of matching and merging: the definition in PyTorch's operations, or C++ for CPUs."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusion import cpu

BACKENDS = ("auto", "reference", "cpu")
_chosen = "auto"


def use_backend(name: str) -> None:
    """Choose the backend from now on: `auto` takes C++ for tensors on a CPU if it is available, else the definition.

    Raises:
        ValueError: The name is unknown, or the backend can't run here; says what would make it run.
    """
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"no fusion backend {name}: choose from {', '.join(BACKENDS)}")
    if name == "cpu" and cpu.unavailable():
        raise ValueError(f"the fusion backend cpu can't run here: {cpu.unavailable()}")
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
def _picked() -> str:
    return "reference" if _chosen == "reference" or cpu.unavailable() else "cpu"


def in_one_operation(*tensors: Tensor) -> bool:
    """Return whether C++ can process these tensors; exported programs are made of PyTorch's own operations."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or _is_transformed():
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors) and _picked() == "cpu"


def _is_transformed() -> bool:
    """Return whether torch.func or forward mode differentiates or maps, which autograd in C++ can't do."""
    in_func = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return in_func or forward_ad._current_level >= 0
