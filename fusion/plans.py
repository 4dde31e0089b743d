"""Make plans: after which layers tokens fuse, and how many.

A plan is a tuple with one int for each layer, the number of tokens to fuse after it. Strategies make plans (Famba-V,
arXiv 2409.09808, section 3), but any tuple of the right length is a plan too.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import accumulate, pairwise

_FUSING_LAYERS = {
    "no": lambda depth, layer: range(0),
    "all": lambda depth, layer: range(depth),
    "interleaved": lambda depth, layer: range(1, depth, 2),
    "alternate": lambda depth, layer: range(1, depth, 2),
    "lower": lambda depth, layer: range(layer),
    "upper": lambda depth, layer: range(layer, depth),
}
STRATEGIES = tuple(_FUSING_LAYERS)
LAYERED = ("lower", "upper")  # strategies that need a layer

# Weight of a layer by its place among those that fuse, from 0, the first, to 1, the last (as ToMe, arXiv 2210.09461).
_WEIGHTS = {
    "constant": lambda place: 1.0,
    "decreasing": lambda place: 1.0 - place,
    "increasing": lambda place: place,
}
SCHEDULES = tuple(_WEIGHTS)


def plan(
    strategy: str,
    depth: int,
    layer: int | None = None,
    tokens: int = 0,
    *,
    total: int | None = None,
    schedule: str = "constant",
) -> tuple[int, ...]:
    """Make the plan of a strategy for a model of `depth` layers.

    Args:
        strategy: `no`; `all`, every layer; `interleaved` or `alternate`, layers 1, 3, 5, ...; `lower`, the layers
            below `layer`; `upper`, `layer` and those above it. Layers count from 0.
        layer: the layer of `lower` (1 to depth) or `upper` (0 to depth - 1); None for any other strategy.
        tokens: tokens to fuse after each of the strategy's layers, on average if the schedule isn't constant; 0 for
            `no` or if a total is given.
        total: tokens to fuse in all layers together, so that strategies compare at one budget.
        schedule: how the tokens are shared out over the strategy's layers: `constant`; `decreasing`, in a straight line
            from twice the average to nothing; `increasing`, the other way round.

    Raises:
        ValueError: the strategy or schedule is unknown, the layer doesn't fit it, or an argument has no effect.
    """
    _check(strategy, depth, layer, tokens, total, schedule)
    fusing = _FUSING_LAYERS[strategy](depth, layer)
    total = tokens * len(fusing) if total is None else total
    amounts = dict(zip(fusing, _share_out(total, len(fusing), schedule), strict=True))
    return tuple(amounts.get(i, 0) for i in range(depth))


def parse_plan(text: str, depth: int) -> tuple[int, ...]:
    """Parse a plan written as numbers between commas; raise ValueError unless each layer has one of at least 0."""
    try:
        amounts = tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"`text` must be whole numbers between commas, not {text!r}") from None
    if len(amounts) != depth:
        raise ValueError(f"`text` has {len(amounts)} numbers, the model {_layers(depth)}")
    if min(amounts) < 0:
        raise ValueError(f"`text` must hold numbers of at least 0, not {min(amounts)}")
    return amounts


def total_to_keep(share: float, patches: int) -> int:
    """Return the total of tokens to fuse so that this share of the patches is left, rounded to whole tokens."""
    return patches - round(share * patches)


def amounts_that_fit(make_plan: Callable[[int], Sequence[int]], patches: int) -> Iterator[int]:
    """Yield the amounts (tokens of a layer, or in all) whose plans fit so many patches, from the least."""
    return (amount for amount in range(1, patches) if _fits(make_plan(amount), patches))


def largest(make_plan: Callable[[int], Sequence[int]], patches: int) -> int:
    """Return the largest amount (tokens of a layer, or in all) whose plan fits so many patches; 0 if none does."""
    return max(amounts_that_fit(make_plan, patches), default=0)


def clip(plan: Sequence[int], patches: int) -> tuple[int, ...]:
    """Return the plan with no layer fusing more than half of the patch tokens that earlier layers leave it."""
    clipped = []
    for amount in plan:
        clipped.append(min(amount, patches // 2))
        patches -= clipped[-1]
    return tuple(clipped)


def token_counts(plan: Sequence[int], length: int) -> tuple[int, ...]:
    """Return sequence lengths under a plan, from `length` before layer 0 to the length after the last layer."""
    return tuple(accumulate(plan, lambda left, fused: left - fused, initial=length))


def format_counts(counts: Sequence[int]) -> str:
    """Format `token_counts` as a line to print: 197 197 197 189 181."""
    return " ".join(map(str, counts))


def _fits(plan: Sequence[int], patches: int) -> bool:
    """Return whether no layer fuses more than half of its patch tokens."""
    return all(2 * fused <= left for fused, left in zip(plan, token_counts(plan, patches), strict=False))


def _share_out(total: int, layers: int, schedule: str) -> list[int]:
    """Share a total out by the schedule's weights; rounding the running sum keeps it whole."""
    weights = [_WEIGHTS[schedule](i / max(layers - 1, 1)) for i in range(layers)]
    whole = sum(weights) or 1.0
    due = [round(total * part / whole) for part in accumulate(weights, initial=0.0)]
    return [after - before for before, after in pairwise(due)]


def _check(strategy: str, depth: int, layer: int | None, tokens: int, total: int | None, schedule: str) -> None:
    if strategy not in STRATEGIES:
        nearest = get_close_matches(strategy, STRATEGIES)
        hint = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
        raise ValueError(f"unknown `strategy` {strategy}{hint}: choose from {', '.join(STRATEGIES)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    _check_layer(strategy, depth, layer)
    _check_amount(strategy, tokens, total)
    fusing = len(_FUSING_LAYERS[strategy](depth, layer))
    if strategy != "no" and not fusing:
        raise ValueError(f"`strategy` {strategy} fuses after no layer of a model with {depth}")
    if fusing < 2 and schedule != "constant":
        raise ValueError(f"`schedule` {schedule} has no effect if {fusing or 'no'} layer fuses: leave it constant")


def _check_layer(strategy: str, depth: int, layer: int | None) -> None:
    bounds = {"lower": (1, depth), "upper": (0, depth - 1)}.get(strategy)
    if bounds is None and layer is not None:
        raise ValueError(f"`layer` is for lower and upper: {strategy} has no use for it")
    if bounds is not None:
        first, last = bounds
        if layer is None:
            raise ValueError(f"{strategy} needs `layer`, {first} to {last} for {_layers(depth)}")
        if not first <= layer <= last:
            raise ValueError(f"`layer` of {strategy} must be {first} to {last} for {_layers(depth)}, not {layer}")


def _layers(depth: int) -> str:
    return f"{depth} layer{'' if depth == 1 else 's'}"


def _check_amount(strategy: str, tokens: int, total: int | None) -> None:
    if tokens and total is not None:
        raise ValueError("`tokens` and `total` exclude each other: tokens a layer, or in all layers")
    name, amount = ("tokens", tokens) if total is None else ("total", total)
    if amount % 1:
        raise ValueError(f"`{name}` must be a whole number, not {amount}")
    if amount < 0:
        raise ValueError(f"`{name}` must be at least 0, not {amount}")
    if strategy == "no" and amount > 0:
        raise ValueError(f"`{name}` {amount} fuses nothing under `strategy` no: choose another strategy")
    if strategy != "no" and amount == 0:
        raise ValueError(f"{strategy} fuses nothing without `tokens` (after each layer) or `total` (in all layers)")
