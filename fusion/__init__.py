"""Fuse tokens in models that scan a sequence (Famba-V, arXiv 2409.09808).

    fusion.inject(model, fusion.plan("upper", depth=24, layer=4, tokens=8))

`match` chooses the tokens to fuse, a plan says how many after each layer, `inject` puts both into a model, and a
`Method` changes how they fuse. `trace` records what was fused, `flops` counts the multiply-adds that are left.
"""

from fusion.backends import BACKENDS, backend, use_backend
from fusion.cost import cost, flops, plan_at_cost
from fusion.injection import TokenFusion, inject
from fusion.matching import Matching, match
from fusion.method import CHOICES, Method
from fusion.onnx import onnx_translations
from fusion.plans import SCHEDULES, STRATEGIES, format_counts, largest, parse_plan, plan, token_counts, total_to_keep
from fusion.tracing import Trace, redundancy, similarity, trace

__all__ = [
    "BACKENDS",
    "CHOICES",
    "SCHEDULES",
    "STRATEGIES",
    "Matching",
    "Method",
    "TokenFusion",
    "Trace",
    "backend",
    "cost",
    "flops",
    "format_counts",
    "inject",
    "largest",
    "match",
    "onnx_translations",
    "parse_plan",
    "plan",
    "plan_at_cost",
    "redundancy",
    "similarity",
    "token_counts",
    "total_to_keep",
    "trace",
    "use_backend",
]
