"""Strategies and plans: after which layers tokens fuse, and how many.

A plan is a tuple with one int a layer, the number of tokens to fuse after it. Strategies make plans (Famba-V,
arXiv 2409.09808, section 3); any other tuple of the right length is as good a plan.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import accumulate

_FUSING_LAYERS = {
    "no": lambda depth, layer: range(0),
    "all": lambda depth, layer: range(depth),
    "interleaved": lambda depth, layer: range(1, depth, 2),
    "alternate": lambda depth, layer: range(1, depth, 2),
    "lower": lambda depth, layer: range(layer),
    "upper": lambda depth, layer: range(layer, depth),
}
STRATEGIES = tuple(_FUSING_LAYERS)


def plan(strategy: str, depth: int, layer: int | None = None, tokens: int = 0) -> tuple[int, ...]:
    """Make the plan of a strategy for a model of `depth` layers.

    Args:
        strategy: `no`; `all`, every layer; `interleaved` or `alternate`, layers 1, 3, 5, ...; `lower`, the layers
            below `layer`; `upper`, `layer` and those above it. Layers count from 0.
        layer: for `lower` (1 to depth) and `upper` (0 to depth - 1), and for these alone.
        tokens: tokens to fuse after each of the strategy's layers; 0 for `no`.

    Raises:
        ValueError: an unknown strategy, or one with a layer or a number of tokens that would change nothing.
    """
    _check(strategy, depth, layer, tokens)
    fusing = _FUSING_LAYERS[strategy](depth, layer)
    return tuple(tokens if i in fusing else 0 for i in range(depth))


def token_counts(plan: Sequence[int], length: int) -> tuple[int, ...]:
    """Return sequence lengths under a plan, from `length` before layer 0 to what is left after the last one."""
    return tuple(accumulate(plan, lambda left, fused: left - fused, initial=length))


def format_counts(counts: Sequence[int]) -> str:
    """Format `token_counts` as a line to print: 197 197 197 189 181."""
    return " ".join(map(str, counts))


def _check(strategy: str, depth: int, layer: int | None, tokens: int) -> None:
    if strategy not in STRATEGIES:
        nearest = get_close_matches(strategy, STRATEGIES)
        hint = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
        raise ValueError(f"unknown --fusion-strategy {strategy}{hint}: choose from {', '.join(STRATEGIES)}")

    bounds = {"lower": (1, depth), "upper": (0, depth - 1)}.get(strategy)
    if bounds is None and layer is not None:
        raise ValueError(f"--fusion-layer is for lower and upper: {strategy} has no use for it")
    if bounds is not None:
        first, last = bounds
        if layer is None:
            raise ValueError(f"{strategy} needs --fusion-layer, {first} to {last} for {depth} layers")
        if not first <= layer <= last:
            raise ValueError(f"--fusion-layer of {strategy} must be {first} to {last} for {depth} layers, not {layer}")

    if tokens < 0:
        raise ValueError(f"--fusion-token must be at least 0, not {tokens}")
    if strategy == "no" and tokens > 0:
        raise ValueError(f"--fusion-token {tokens} fuses nothing under --fusion-strategy no: choose another strategy")
    if strategy != "no" and tokens == 0:
        raise ValueError(f"{strategy} fuses nothing without --fusion-token, the tokens to fuse after each layer")
    if strategy != "no" and not _FUSING_LAYERS[strategy](depth, layer):
        raise ValueError(f"--fusion-strategy {strategy} fuses after no layer of a model with {depth}")
