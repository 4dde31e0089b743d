from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusion

DEPTH = 6


@pytest.mark.parametrize(
    ("strategy", "layer", "expected"),
    [
        ("all", None, (3, 3, 3, 3, 3, 3)),
        ("interleaved", None, (0, 3, 0, 3, 0, 3)),
        ("alternate", None, (0, 3, 0, 3, 0, 3)),
        ("lower", 1, (3, 0, 0, 0, 0, 0)),
        ("lower", 2, (3, 3, 0, 0, 0, 0)),
        ("lower", 6, (3, 3, 3, 3, 3, 3)),
        ("upper", 0, (3, 3, 3, 3, 3, 3)),
        ("upper", 2, (0, 0, 3, 3, 3, 3)),
        ("upper", 5, (0, 0, 0, 0, 0, 3)),
    ],
)
def test_strategies(strategy, layer, expected):
    assert fusion.plan(strategy, DEPTH, layer, tokens=3) == expected


def test_no_fuses_nothing():
    assert fusion.plan("no", DEPTH) == (0,) * DEPTH


@pytest.mark.parametrize("layer", range(1, DEPTH))
def test_lower_and_upper_split_the_layers(layer):
    lower, upper = (fusion.plan(strategy, DEPTH, layer, tokens=1) for strategy in ("lower", "upper"))
    assert [a + b for a, b in zip(lower, upper, strict=True)] == [1] * DEPTH


def test_strategies_are_all_listed():
    assert fusion.STRATEGIES == ("no", "all", "interleaved", "alternate", "lower", "upper")


def test_counts_before_the_first_layer_and_after_each():
    counts = fusion.token_counts(fusion.plan("upper", 24, layer=4, tokens=8), 197)
    assert len(counts) == 25
    assert fusion.format_counts(counts) == (
        "197 197 197 197 197 189 181 173 165 157 149 141 133 125 117 109 101 93 85 77 69 61 53 45 37"
    )


@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 200))
def test_a_clipped_plan_fuses_what_a_layer_can(plan, patches):
    """Each layer as much as asked for, or half of the patches that are left."""
    clipped, left = fusion.clip(plan, patches), patches
    for asked, fused in zip(plan, clipped, strict=True):
        assert fused == min(asked, left // 2)
        left -= fused
    assert fusion.clip(clipped, patches) == clipped


def test_clipping_changes_no_plan_that_fits():
    plan = fusion.plan("upper", 24, layer=4, tokens=8)
    assert fusion.clip(plan, 196) == plan


def test_strategies_with_a_layer_need_one():
    for strategy in fusion.STRATEGIES:
        tokens = 0 if strategy == "no" else 1
        if strategy in fusion.LAYERED:
            with pytest.raises(ValueError, match="needs `layer`"):
                fusion.plan(strategy, DEPTH, tokens=tokens)
        else:
            assert len(fusion.plan(strategy, DEPTH, tokens=tokens)) == DEPTH


@given(
    st.sampled_from([("all", None), ("interleaved", None), ("lower", 4), ("upper", 2)]),
    st.integers(1, 100),
    st.sampled_from(fusion.SCHEDULES),
)
def test_a_total_is_shared_out_over_the_strategys_layers(strategy, total, schedule):
    name, layer = strategy
    plan = fusion.plan(name, DEPTH, layer, total=total, schedule=schedule)
    assert sum(plan) == total
    fusing = [r for r, one in zip(plan, fusion.plan(name, DEPTH, layer, tokens=1), strict=True) if one]
    assert sum(fusing) == total
    if schedule == "constant":
        assert max(fusing) - min(fusing) <= 1
    else:
        falling = fusing if schedule == "decreasing" else fusing[::-1]
        assert all(later <= earlier + 1 for earlier, later in pairwise(falling))  # whole tokens: one may lag behind


def test_schedules():
    assert fusion.plan("all", 5, total=20, schedule="decreasing") == (8, 6, 4, 2, 0)
    assert fusion.plan("all", 5, total=20, schedule="increasing") == (0, 2, 4, 6, 8)
    assert fusion.plan("upper", 6, 1, tokens=4, schedule="decreasing") == (0, 8, 6, 4, 2, 0)
    assert fusion.plan("interleaved", 6, total=7) == (0, 2, 0, 3, 0, 2)


def test_a_written_plan():
    assert fusion.parse_plan("0,0, 8,3", 4) == (0, 0, 8, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1", "`text` has 2 numbers, the model 4 layers"),
        ("0,1,x,2", "`text` must be whole numbers between commas, not '0,1,x,2'"),
        ("", "whole numbers between commas"),
        ("0,1,-2,2", "`text` must hold numbers of at least 0, not -2"),
    ],
)
def test_a_wrong_written_plan(text, message):
    with pytest.raises(ValueError, match=message):
        fusion.parse_plan(text, 4)


@given(
    st.sampled_from([("all", None), ("interleaved", None), ("lower", 4), ("upper", 2)]),
    st.integers(4, 60),
    st.sampled_from(fusion.SCHEDULES),
)
def test_the_largest_amount_is_the_last_that_fits(strategy, patches, schedule):
    name, layer = strategy

    def fits(total):
        counts = fusion.token_counts(fusion.plan(name, DEPTH, layer, total=total, schedule=schedule), patches)
        return all(2 * (before - after) <= before for before, after in pairwise(counts))

    largest = fusion.largest(lambda total: fusion.plan(name, DEPTH, layer, total=total, schedule=schedule), patches)
    assert 0 < largest < patches
    assert fits(largest)
    assert not any(fits(total) for total in range(largest + 1, patches + 1))


@pytest.mark.parametrize(("share", "total"), [(1.0, 0), (0.5, 98), (0.25, 147), (0.0, 196), (0.01, 194)])
def test_share_to_keep(share, total):
    assert fusion.total_to_keep(share, 196) == total


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "uper", "layer": 2, "tokens": 3}, r"`strategy` uper \(did you mean upper\?\)"),
        ({"strategy": "zigzag"}, "`strategy` zigzag: choose from no, all, interleaved, alternate, lower, upper"),
        ({"strategy": "lower", "tokens": 3}, "needs `layer`, 1 to 6 for 6 layers"),
        ({"strategy": "upper", "tokens": 3}, "needs `layer`, 0 to 5 for 6 layers"),
        ({"strategy": "lower", "layer": 0, "tokens": 3}, "`layer` of lower must be 1 to 6 .* not 0"),
        ({"strategy": "lower", "layer": 7, "tokens": 3}, "`layer` of lower must be 1 to 6 .* not 7"),
        ({"strategy": "upper", "layer": -1, "tokens": 3}, "`layer` of upper must be 0 to 5 .* not -1"),
        ({"strategy": "upper", "layer": 6, "tokens": 3}, "`layer` of upper must be 0 to 5 .* not 6"),
        ({"strategy": "no", "layer": 2}, "`layer` is for lower and upper: no"),
        ({"strategy": "all", "layer": 2, "tokens": 3}, "`layer` is for lower and upper: all"),
        ({"strategy": "interleaved", "layer": 2, "tokens": 3}, "`layer` is for lower and upper: interleaved"),
        ({"strategy": "alternate", "layer": 0, "tokens": 3}, "`layer` is for lower and upper: alternate"),
        ({"strategy": "all", "tokens": -1}, "`tokens` must be at least 0, not -1"),
        ({"strategy": "no", "tokens": -1}, "`tokens` must be at least 0, not -1"),
        ({"strategy": "no", "tokens": 3}, "`tokens` 3 fuses nothing"),
        ({"strategy": "all"}, "fuses nothing without `tokens`"),
        ({"strategy": "upper", "layer": 2}, "fuses nothing without `tokens`"),
        ({"strategy": "interleaved", "depth": 1, "tokens": 3}, "after no layer of a model with 1"),
        ({"strategy": "all", "tokens": 3, "total": 9}, "`tokens` and `total` exclude each other"),
        ({"strategy": "all", "total": 0}, "fuses nothing without"),
        ({"strategy": "all", "total": -3}, "`total` must be at least 0, not -3"),
        ({"strategy": "all", "tokens": 1.5}, "`tokens` must be a whole number, not 1.5"),
        ({"strategy": "no", "total": 3}, "`total` 3 fuses nothing"),
        ({"strategy": "all", "tokens": 3, "schedule": "rising"}, "`schedule` must be one of constant, decr"),
        ({"strategy": "no", "schedule": "increasing"}, "`schedule` increasing has no effect if no layer"),
        ({"strategy": "upper", "layer": 5, "total": 3, "schedule": "decreasing"}, "has no effect if 1 layer"),
    ],
)
def test_refuses_what_would_change_nothing(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        fusion.plan(**{"depth": DEPTH, **arguments})
    assert "\n" not in str(error.value)
