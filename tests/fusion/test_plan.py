import pytest

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "uper", "layer": 2, "tokens": 3}, r"--fusion-strategy uper \(did you mean upper\?\)"),
        ({"strategy": "zigzag"}, "--fusion-strategy zigzag: choose from no, all, interleaved, alternate, lower, upper"),
        ({"strategy": "lower", "tokens": 3}, "needs --fusion-layer, 1 to 6 for 6 layers"),
        ({"strategy": "upper", "tokens": 3}, "needs --fusion-layer, 0 to 5 for 6 layers"),
        ({"strategy": "lower", "layer": 0, "tokens": 3}, "--fusion-layer of lower must be 1 to 6 .* not 0"),
        ({"strategy": "lower", "layer": 7, "tokens": 3}, "--fusion-layer of lower must be 1 to 6 .* not 7"),
        ({"strategy": "upper", "layer": -1, "tokens": 3}, "--fusion-layer of upper must be 0 to 5 .* not -1"),
        ({"strategy": "upper", "layer": 6, "tokens": 3}, "--fusion-layer of upper must be 0 to 5 .* not 6"),
        ({"strategy": "no", "layer": 2}, "--fusion-layer is for lower and upper: no"),
        ({"strategy": "all", "layer": 2, "tokens": 3}, "--fusion-layer is for lower and upper: all"),
        ({"strategy": "interleaved", "layer": 2, "tokens": 3}, "--fusion-layer is for lower and upper: interleaved"),
        ({"strategy": "alternate", "layer": 0, "tokens": 3}, "--fusion-layer is for lower and upper: alternate"),
        ({"strategy": "all", "tokens": -1}, "--fusion-token must be at least 0, not -1"),
        ({"strategy": "no", "tokens": -1}, "--fusion-token must be at least 0, not -1"),
        ({"strategy": "no", "tokens": 3}, "--fusion-token 3 fuses nothing"),
        ({"strategy": "all"}, "fuses nothing without --fusion-token"),
        ({"strategy": "upper", "layer": 2}, "fuses nothing without --fusion-token"),
        ({"strategy": "interleaved", "depth": 1, "tokens": 3}, "after no layer of a model with 1"),
    ],
)
def test_refuses_what_would_change_nothing(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        fusion.plan(**{"depth": DEPTH, **arguments})
    assert "\n" not in str(error.value)
