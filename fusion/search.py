"""Search for the plan that changes a model least at a price.

The search knows neither a model nor images. `divergence(plan)` measures how much a plan changes the model, 0 without
fusion; `cost(plan)` is what a forward pass costs under it.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.plans import clip

Plan = tuple[int, ...]
STEPS = (1, 2, 4, 8, 16, 32)  # tokens that a greedy step adds to a layer
WARMTH = 0.1  # of annealing at its start: the temperature's share of the least divergence so far
CHAINS = 8  # candidates that are refined
WHOLE = 0.4  # how often a layer gives all its tokens


@dataclass(frozen=True)
class Found:
    """Hold what a search found.

    Attributes:
        plan: The best plan within the budget.
        divergence: Its divergence.
        start: The best of the plans that were refined.
        start_divergence: Its divergence.
        alone: What fusing r tokens after one layer alone changes, by layer and r.
    """

    plan: Plan
    divergence: float
    start: Plan
    start_divergence: float
    alone: list[dict[int, float]]


def search(
    divergence: Callable[[Plan], float],
    cost: Callable[[Plan], float],
    budget: float,
    depth: int,
    patches: int,
    *,
    starts: Sequence[Plan] = (),
    seed: int = 0,
    moves: int = 600,
) -> Found:
    """Search for the plan of least divergence whose cost is within the budget.

    Each layer is measured alone. As if what layers change added up, a plan grows step by step by the tokens that change
    least for what they save. This plan, plans that fuse the same share after each layer from some layer on, and the
    given ones are the candidates. Annealing, which measures whole plans, refines the best of them by successive
    halving (Jamieson and Talwalkar, arXiv 1502.07943): a few moves for many, then more for the better half.

    Args:
        divergence: May be called with a plan again, so one that takes long keeps what it found.
        cost: Takes little time.
        budget: The largest cost.
        depth: Layers of the model. None fuse after the last one, which would save nothing.
        patches: Patch tokens before the first layer.
        starts: Plans to consider too; those that cost more than the budget grow until they don't.
        seed: Determines the order in which moves are tried.
        moves: Moves to try in all.

    Raises:
        ValueError: No plan is within the budget.
    """
    least = cost(thinnest(depth, patches))
    if budget < least:
        raise ValueError(f"`budget` {budget:g} is less than any plan can reach: {least:g}")
    alone = [measure_alone(divergence, layer, depth, patches) for layer in range(depth - 1)]
    candidates = ((0,) * depth, *geometric(cost, budget, depth, patches), *starts)
    grown = {grow(plan, alone, cost, budget, patches) for plan in candidates}
    plans = sorted(grown, key=lambda plan: (divergence(plan), plan))[:CHAINS]
    start, rungs, draw = plans[0], len(plans).bit_length(), random.Random(seed)
    for _ in range(rungs):
        each = moves // rungs // len(plans)
        refined = {
            anneal(plan, divergence, cost, budget, patches, seed=draw.getrandbits(32), moves=each) for plan in plans
        }
        plans = sorted(refined, key=lambda plan: (divergence(plan), plan))[: max(len(plans) // 2, 1)]
    return Found(plans[0], divergence(plans[0]), start, divergence(start), alone)


def measure_alone(divergence: Callable[[Plan], float], layer: int, depth: int, patches: int) -> dict[int, float]:
    """Measure what fusing r tokens after one layer changes, for each r of `amounts`."""
    return {r: divergence(_with((0,) * depth, layer, r)) for r in amounts(patches)}


def amounts(patches: int) -> list[int]:
    """Return about a geometric series of amounts, up to half of the patches."""
    series = {r for step in STEPS for r in (step, step + step // 2)}
    return sorted({r for r in series if r < patches // 2} | {patches // 2})


def geometric(cost: Callable[[Plan], float], budget: float, depth: int, patches: int) -> list[Plan]:
    """Return the plans within the budget that fuse the same share of the tokens after each layer from some layer on."""
    found = []
    for first in range(depth - 1):
        plans = (fitted_share(percent / 100, first, depth, patches) for percent in range(1, 51))
        found += [plan for plan in plans if cost(plan) <= budget][:1]
    return found


def fitted_share(share: float, first: int, depth: int, patches: int) -> Plan:
    """Return the plan that fuses a share of the tokens after each layer from `first` on, but not after the last."""
    amounts = [0] * depth
    for layer in range(first, depth - 1):
        amounts[layer] = int(share * patches)
        patches -= amounts[layer]
    return tuple(amounts)


def thinnest(depth: int, patches: int) -> Plan:
    """Return the plan that fuses as many tokens as fit after each layer but the last."""
    return clip([patches] * (depth - 1) + [0], patches)


def grow(plan: Plan, alone: list[dict[int, float]], cost: Callable[[Plan], float], budget: float, patches: int) -> Plan:
    """Add tokens to a plan until it is within the budget, each time those that change least for what they save."""
    curves = [([0, *values], [0.0, *values.values()]) for values in alone]

    def change(plan: Plan) -> float:
        return sum(float(np.interp(r, *curve)) for r, curve in zip(plan, curves, strict=False))

    while cost(plan) > budget:
        before, paid = change(plan), cost(plan)
        steps = {clip(_with(plan, layer, plan[layer] + step), patches) for layer in range(len(alone)) for step in STEPS}
        prices = {new: (change(new) - before) / (paid - cost(new)) for new in steps if cost(new) < paid}
        if not prices:
            return thinnest(len(plan), patches)
        plan = min(prices, key=lambda new: (prices[new], new))
    return plan


def anneal(
    plan: Plan,
    divergence: Callable[[Plan], float],
    cost: Callable[[Plan], float],
    budget: float,
    patches: int,
    *,
    seed: int,
    moves: int,
) -> Plan:
    """Move tokens between layers within the budget, and return the best plan on the way.

    Simulated annealing (Kirkpatrick et al., Science 220, 1983): a move that raises the divergence is made with the
    probability exp(-rise / temperature), and the temperature falls to 0. One layer gives all or some of its tokens;
    another takes as many as the budget then asks.
    """
    draw = random.Random(seed)
    best, now = plan, divergence(plan)
    least = now
    for left in range(moves, 0, -1):
        new = _move(plan, cost, budget, patches, draw)
        if new is None:
            continue
        temperature, rise = WARMTH * least * left / moves, divergence(new) - now
        if rise <= 0 or (temperature and draw.random() < math.exp(-rise / temperature)):
            plan, now = new, now + rise
        if now < least:
            best, least = plan, now
    return best


def _move(plan: Plan, cost: Callable[[Plan], float], budget: float, patches: int, draw: random.Random) -> Plan | None:
    """Return the plan after a random move, None if the taker can't take enough."""
    givers = [layer for layer, r in enumerate(plan) if r]
    if not givers:
        return None
    giver = draw.choice(givers)
    given = plan[giver] if draw.random() < WHOLE else draw.randint(1, plan[giver])
    fewer = _with(plan, giver, plan[giver] - given)
    if cost(fewer) <= budget:
        return fewer
    taker = draw.choice([layer for layer in range(len(plan) - 1) if layer != giver] or [giver])
    for r in range(fewer[taker] + 1, patches // 2 + 1):
        new = clip(_with(fewer, taker, r), patches)
        if cost(new) <= budget:
            return new
    return None


def _with(plan: Plan, layer: int, r: int) -> Plan:
    return (*plan[:layer], r, *plan[layer + 1 :])
