"""Compute Vision Mamba's state space: a causal convolution, a selective scan, and the mixer made of them.

`python -m ssm` says which implementations of the two operations run on this machine, and what the rest would need.
"""

from importlib import import_module
from typing import Any

from ssm.names import BACKENDS

# Names and their modules, which need PyTorch: they are imported when first used, so that flags are read without it.
_NEED_PYTORCH = {
    "BiMamba": "mixer",
    "SelectiveSSM": "mixer",
    "add_and_normalize": "norm",
    "causal_conv1d": "backends",
    "pick": "backends",
    "selective_scan": "backends",
    "unavailable": "backends",
    "use_backend": "backends",
}

__all__ = ["BACKENDS", *_NEED_PYTORCH]


def __getattr__(name: str) -> Any:
    if name not in _NEED_PYTORCH:
        raise AttributeError(f"module 'ssm' has no attribute {name!r}")
    return getattr(import_module(f"ssm.{_NEED_PYTORCH[name]}"), name)


def __dir__() -> list[str]:
    return __all__
