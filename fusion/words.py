"""Read plans as command lines give them, each in one word: all:3, upper:6:6, upper:6=36, upper:6@0.7, 0,0,4,..."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import nn

from fusion.injection import check_plan
from fusion.method import Method
from fusion.multiply_adds import plan_at_cost
from fusion.plans import STRATEGIES, parse_plan, plan

GRAMMAR = (
    "no, STRATEGY[:LAYER]:TOKENS (after each of its layers), STRATEGY[:LAYER]=TOTAL (in all layers), "
    "STRATEGY[:LAYER]@SHARE (as many as leave this share of the multiply-adds), or [NAME:]R,R,... with one number for "
    "each layer"
)
_SERIES = r"(?P<series>(?P<strategy>\w+)(:(?P<layer>\d+))?)"
_STRATEGY = re.compile(_SERIES + r"((?P<of>[:=])(?P<counts>\d+(,\d+)*)|@(?P<shares>\d*\.?\d+(,\d*\.?\d+)*))")
_PLAN = re.compile(r"((?P<name>[^:]+):)?(?P<plan>\d+(,\d+)+)")


class NamedPlan(NamedTuple):
    """Hold a plan and its names.

    Attributes:
        name: The word, with one amount: upper:6@0.7.
        series: What it has in common with the same strategy's plans of other amounts: upper:6.
        plan: Tokens to fuse after each layer.
    """

    name: str
    series: str
    plan: tuple[int, ...]


def named_plans(word: str, model: nn.Module, method: Method = Method()) -> tuple[list[NamedPlan], list[str]]:
    """Make the plans that a word names for a model: one for each of its amounts, which commas divide.

    Args:
        word: As GRAMMAR says.
        model: As for `inject`.
        method: How tokens will fuse, because what matching costs depends on it.

    Returns:
        The plans, and a line about each amount that doesn't fit the model.

    Raises:
        ValueError: The word names no plan, or none that fits the model.
    """
    found, misfits = [], []
    for name, series, make in _makers(word, model, method):
        try:
            tokens = make()
            check_plan(tokens, len(model.layers), model.patch_embed.num_patches)
            found.append(NamedPlan(name, series, tokens))
        except ValueError as error:
            misfits.append(f"{name}: {error}")
    if not found:
        raise ValueError(misfits[0])
    return found, misfits


def _makers(word: str, model: nn.Module, method: Method) -> Iterator[tuple[str, str, Callable[[], tuple[int, ...]]]]:
    """Yield the name, the series and the maker of each plan that a word names."""
    depth = len(model.layers)
    own, ours = _PLAN.fullmatch(word), _STRATEGY.fullmatch(word)
    if word == "no":
        yield word, word, partial(plan, "no", depth)
    elif own and own["name"] not in STRATEGIES:
        name = own["name"] or word
        yield name, name, partial(parse_plan, own["plan"], depth)
    elif ours:
        strategy, layer = ours["strategy"], ours["layer"] and int(ours["layer"])
        for share in filter(None, (ours["shares"] or "").split(",")):
            make = partial(plan_at_cost, model, float(share), strategy, layer, method=method)
            yield f"{ours['series']}@{share}", ours["series"], make
        for count in filter(None, (ours["counts"] or "").split(",")):
            amount = {":": "tokens", "=": "total"}[ours["of"]]
            make = partial(plan, strategy, depth, layer, **{amount: int(count)})
            yield f"{ours['series']}{ours['of']}{count}", ours["series"], make
    else:
        raise ValueError(f"{word}: must be {GRAMMAR}")
