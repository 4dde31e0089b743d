"""The search for a plan: within the budget, the same by the same seed, never worse than where it starts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.plans import token_counts
from fusion.search import anneal, geometric, grow, measure_alone, search, thinnest

DEPTH, PATCHES = 5, 16


def tokens_seen(plan):
    """A cost: the tokens that the layers see."""
    return sum(token_counts(plan, PATCHES)[:-1])


def fits(plan):
    return all(2 * r <= left for r, left in zip(plan, token_counts(plan, PATCHES), strict=False))


def weighed(weights, jumps=()):
    """A divergence: a price for each token, and one for each pair of layers that both fuse."""

    def divergence(plan):
        pairs = sum(jump for i, jump in enumerate(jumps) if plan[i] and plan[i + 1])
        return sum(w * r * r for w, r in zip(weights, plan, strict=True)) + pairs

    return divergence


prices = st.lists(st.floats(0.01, 10), min_size=DEPTH, max_size=DEPTH)
LEAST = tokens_seen(thinnest(DEPTH, PATCHES))
budgets = st.integers(LEAST, DEPTH * PATCHES)


@settings(max_examples=60, deadline=None)
@given(prices, st.lists(st.floats(0, 50), min_size=DEPTH - 1, max_size=DEPTH - 1), budgets, st.integers(0, 99))
def test_found_plans(weights, jumps, budget, seed):
    divergence = weighed(weights, jumps)
    start = (4, 0, 3, 1, 0)
    found = search(divergence, tokens_seen, budget, DEPTH, PATCHES, starts=[start], seed=seed, moves=40)
    assert tokens_seen(found.plan) <= budget
    assert fits(found.plan)
    assert found.divergence == divergence(found.plan) <= found.start_divergence == divergence(found.start)
    if tokens_seen(start) <= budget:
        assert found.divergence <= divergence(start)
    assert found == search(divergence, tokens_seen, budget, DEPTH, PATCHES, starts=[start], seed=seed, moves=40)


@settings(max_examples=30, deadline=None)
@given(prices, budgets, st.integers(0, 99), st.integers(0, 30))
def test_no_more_moves_than_allowed(weights, budget, seed, moves):
    divergence, asked = weighed(weights), set()

    def count(plan):
        asked.add(plan)
        return divergence(plan)

    anneal(thinnest(DEPTH, PATCHES), count, tokens_seen, budget, PATCHES, seed=seed, moves=moves)
    assert len(asked) <= moves + 1


def test_a_layer_that_costs_nothing_is_found():
    """Only layer 2 is free; with the price of the others it takes all that the budget asks."""
    divergence = weighed([5, 5, 0, 5, 5])
    found = search(divergence, tokens_seen, DEPTH * PATCHES - 10, DEPTH, PATCHES)
    assert found.plan == (0, 0, 5, 0, 0)
    assert found.divergence == 0


def test_refining_mends_what_adding_up_misses():
    """Layers 0 and 1 look cheap, each alone, and together change everything."""
    divergence = weighed([0.1, 0.1, 1, 9, 9], [1000, 0, 0, 0])
    budget = DEPTH * PATCHES - 25
    found = search(divergence, tokens_seen, budget, DEPTH, PATCHES)
    added_up = grow((0,) * DEPTH, found.alone, tokens_seen, budget, PATCHES)
    assert divergence(added_up) > 1000
    assert found.divergence < found.start_divergence < divergence(added_up)


def test_the_best_of_small_problems():
    """Against every plan there is."""
    divergence = weighed([3, 1, 4, 1, 5], [2, 7, 1, 8])
    everything = [(a, b, c, d, 0) for a in range(9) for b in range(9) for c in range(9) for d in range(9)]
    for budget in (50, 60, 70):
        best = min(divergence(plan) for plan in everything if fits(plan) and tokens_seen(plan) <= budget)
        found = search(divergence, tokens_seen, budget, DEPTH, PATCHES, moves=3000)
        assert found.divergence <= 1.1 * best


def test_another_seed_tries_moves_in_another_order():
    orders = []
    for seed in (0, 1):
        asked = []

        def divergence(plan, asked=asked):
            asked.append(plan)
            return 1.0

        anneal((3, 3, 3, 0, 0), divergence, tokens_seen, 60, PATCHES, seed=seed, moves=20)
        orders.append(asked)
    assert orders[0] != orders[1]


def test_a_budget_that_no_plan_reaches():
    with pytest.raises(ValueError, match=f"`budget` {LEAST - 1} is less than any plan can reach: {LEAST}"):
        search(weighed([1] * DEPTH), tokens_seen, LEAST - 1, DEPTH, PATCHES)


def test_the_same_share_from_some_layer_on():
    plans = geometric(tokens_seen, 60, DEPTH, PATCHES)
    assert (0, 4, 3, 2, 0) in plans
    assert all(tokens_seen(plan) <= 60 and fits(plan) for plan in plans)
    assert len({next(layer for layer, r in enumerate(plan) if r) for plan in plans}) == len(plans)


def test_layers_alone():
    alone = measure_alone(lambda plan: plan[1] / 10, 1, DEPTH, PATCHES)
    assert alone == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 6: 0.6, 8: 0.8}


def test_a_step_that_saves_too_little_gives_way_to_a_larger_one():
    """Where matching costs more than a token saves, one by one nothing would ever be saved."""

    def cost(plan):
        return tokens_seen(plan) + 5 * sum(r > 0 for r in plan)

    alone = [{1: 1.0, 8: 8.0}] * (DEPTH - 1)
    plan = grow((0,) * DEPTH, alone, cost, DEPTH * PATCHES - 6, PATCHES)
    assert cost(plan) <= DEPTH * PATCHES - 6
