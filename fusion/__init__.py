"""Fuse tokens in models that scan a sequence (Famba-V, arXiv 2409.09808).

    fusion.inject(model, fusion.plan("upper", depth=24, layer=4, tokens=8))

`match` chooses the tokens to fuse, a plan says how many after each layer, `inject` puts both into a model, and a
`Method` changes how they fuse. `trace` records what was fused, `flops` counts the multiply-adds that are left.
"""

from importlib import import_module
from typing import Any

from fusion.method import CHOICES, CONTRADICTIONS, Method
from fusion.plans import (
    LAYERED,
    SCHEDULES,
    STRATEGIES,
    clip,
    format_counts,
    largest,
    parse_plan,
    plan,
    token_counts,
    total_to_keep,
)

# Names and their modules, which need PyTorch: they are imported when first used, so that flags are read without it.
_NEED_PYTORCH = {
    "BACKENDS": "backends",
    "Matching": "merging",
    "TokenFusion": "injection",
    "Trace": "tracing",
    "backend": "backends",
    "cost": "multiply_adds",
    "flops": "multiply_adds",
    "inject": "injection",
    "match": "matching",
    "onnx_translations": "onnx",
    "plan_at_cost": "multiply_adds",
    "redundancy": "tracing",
    "similarity": "tracing",
    "trace": "tracing",
    "use_backend": "backends",
}

__all__ = [
    "CHOICES",
    "CONTRADICTIONS",
    "LAYERED",
    "SCHEDULES",
    "STRATEGIES",
    "Method",
    "clip",
    "format_counts",
    "largest",
    "parse_plan",
    "plan",
    "token_counts",
    "total_to_keep",
    *_NEED_PYTORCH,
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_PYTORCH:
        raise AttributeError(f"module 'fusion' has no attribute {name!r}")
    return getattr(import_module(f"fusion.{_NEED_PYTORCH[name]}"), name)


def __dir__() -> list[str]:
    return __all__
