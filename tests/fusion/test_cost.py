"""The count of multiply-adds: against PyTorch's own count of products, and the numbers of the literature."""

import pytest
import torch
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
