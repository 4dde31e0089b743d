"""The count of multiply-adds: against PyTorch's own count of products, and the numbers of the literature."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import create_model
from torch.utils.flop_counter import FlopCounterMode

import fusion
import models_mamba  # noqa: F401, registers the models
import ssm


@pytest.mark.parametrize("plan", [(0,) * 6, (2, 0, 3, 0, 0, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": "none", "global_pool": "max"},
        {"class_token": "double", "global_pool": "max"},
        {"global_pool": ""},
        {"bidirectional": False},
    ],
)
def test_products_are_those_that_run(options, plan):
    model = create_model("vim_pico_patch2_8", num_classes=7, **options).eval()
    fusion.inject(model, plan)
    reference = ssm.use_backend("reference"), fusion.backend("reference")
    with reference[0], reference[1], torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 8, 8))
    parts = fusion.cost(model)
    counted = parts["embedding"] + parts["products"] + parts["matching"] + parts["head"]
    assert counted == counter.get_total_flops() / 2
    assert (parts["matching"] > 0) == any(plan)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("metric", ["delta", "B", "C", "scan"])
def test_matching_by_a_part_of_the_mixer_costs_by_its_width(metric, bidirectional):
    model = create_model("vim_pico_patch2_8", num_classes=7, bidirectional=bidirectional).eval()
    fusion.inject(model, (2, 0, 3, 0, 0, 1), fusion.Method(metric=metric))
    reference = ssm.use_backend("reference"), fusion.backend("reference")
    with reference[0], reference[1], torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 8, 8))
    parts = fusion.cost(model)
    counted = parts["embedding"] + parts["products"] + parts["matching"] + parts["head"]
    assert counted == counter.get_total_flops() / 2


def test_convolution_and_scan_by_the_formula():
    model = create_model("vim_pico_patch2_8", num_classes=7)
    fusion.inject(model, (2, 0, 3, 0, 0, 1))
    tokens = sum(fusion.token_counts((2, 0, 3, 0, 0, 1), 17)[:-1])
    parts = fusion.cost(model)
    assert parts["convolution"] == 2 * tokens * 96 * 4
    assert parts["scan"] == 2 * tokens * 96 * (4 * 16 + 3)
    assert fusion.flops(model) == sum(parts.values())


def test_random_pairs_cost_no_products():
    model = create_model("vim_pico_patch2_8")
    fusion.inject(model, (2, 0, 3, 0, 0, 1), fusion.Method(match="random"))
    assert fusion.cost(model)["matching"] == 0


def test_vim_tiny_is_as_in_the_literature():
    model = create_model("vim_tiny_patch16_224")
    assert round(fusion.flops(model) / 1e9, 1) == 1.5
    plain = fusion.flops(model)
    fusion.inject(model, fusion.plan("all", 24, tokens=7))
    assert 0.6 < fusion.flops(model) / plain < 0.62


def test_the_cost_of_a_plan_that_is_not_injected():
    model, method = create_model("vim_pico_patch2_8"), fusion.Method(match="random")
    plan = (2, 0, 3, 0, 0, 1)
    said = fusion.cost(model, plan), fusion.cost(model, plan, method)
    assert not any(isinstance(block.fusion, fusion.TokenFusion) for block in model.layers)
    fusion.inject(model, plan, method)
    assert fusion.cost(model) == fusion.cost(model, plan) == said[1]
    assert fusion.cost(model, plan, fusion.Method()) == said[0]
    assert said[0]["matching"] > said[1]["matching"] == 0
    with pytest.raises(ValueError, match="length 2, the model depth 6"):
        fusion.cost(model, (2, 0))


PICO = create_model("vim_pico_patch2_8")
PLACES = [("all", None), ("interleaved", None), ("lower", 3), ("upper", 0), ("upper", 3), ("upper", 4)]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 0.999),
    st.sampled_from(PLACES),
    st.sampled_from(fusion.SCHEDULES),
    st.sampled_from(["similar", "random"]),
)
def test_a_plan_by_cost_is_within_one_token_of_it(share, place, schedule, match):
    """No total comes nearer, and what is missed is less than one token in all layers costs."""
    (strategy, layer), method = place, fusion.Method(match=match)

    def make_plan(total):
        return fusion.plan(strategy, 6, layer, total=total, schedule=schedule)

    plans = [(0,) * 6, *map(make_plan, range(1, fusion.largest(make_plan, 16) + 1))]
    shares = [fusion.flops(PICO, plan, method) / fusion.flops(PICO, plans[0]) for plan in plans]
    nearest = min(range(len(plans)), key=lambda total: abs(shares[total] - share))
    if share < min(shares) or not nearest:
        with pytest.raises(ValueError, match="can reach" if share < min(shares) else "fuses nothing"):
            fusion.plan_at_cost(PICO, share, strategy, layer, schedule=schedule, method=method)
        return
    assert fusion.plan_at_cost(PICO, share, strategy, layer, schedule=schedule, method=method) == plans[nearest]
    parts = fusion.cost(PICO, plans[0])
    one_token = (parts["products"] + parts["convolution"] + parts["scan"]) / 17 / sum(parts.values())
    assert abs(shares[nearest] - share) < one_token


@pytest.mark.parametrize(
    ("strategy", "layer", "least"), [("all", None, 0.6647), ("upper", 3, 0.8858), ("upper", 5, 1.0009)]
)
def test_the_least_share_that_a_strategy_reaches_is_named_and_can_be_had(strategy, layer, least):
    with pytest.raises(ValueError, match=f"`share` 0.2 is less than {strategy} can reach: {least}$"):
        fusion.plan_at_cost(PICO, 0.2, strategy, layer)
    if least < 1:
        assert fusion.plan_at_cost(PICO, least, strategy, layer)


def test_a_cost_counts_every_layer_of_the_plan():
    """Layers above those that fuse count too: the same tokens cost the less the earlier they fuse."""
    fused = [sum(fusion.plan_at_cost(PICO, 0.9, strategy, layer)) for strategy, layer in PLACES[2:5]]
    assert fused[0] < fused[2]


def test_a_share_is_a_number():
    with pytest.raises(ValueError, match="`share` must be a number"):
        fusion.plan_at_cost(PICO, float("nan"), "all")
