"""Token fusion for models that scan a sequence (Famba-V, arXiv 2409.09808).

    fusion.inject(model, fusion.plan("upper", depth=24, layer=4, tokens=8))

`match` chooses the tokens, a plan says how many after each layer, `inject` puts both into a model.
"""

from fusion.injection import TokenFusion, inject
from fusion.matching import Matching, match
from fusion.plans import STRATEGIES, format_counts, plan, token_counts

__all__ = ["STRATEGIES", "Matching", "TokenFusion", "format_counts", "inject", "match", "plan", "token_counts"]
