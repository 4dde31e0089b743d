"""The stages of a training: sizes, and a plan of fusion made for each."""

from contextlib import suppress

import pytest
import torch

from fusion import flops
from fusion.injection import injected_plan
from training.build.model import new_model, with_image_size
from training.build.stages import Stage, build_stages
from training.settings.command_line import parse_args


def model_and_stages(flags):
    settings = parse_args(["--epochs", "4", *flags.split()])
    model = new_model(settings)
    return model, build_stages(with_image_size(settings, model), model)


@pytest.mark.parametrize(
    ("flags", "plans"),
    [
        ("", [(0, 0, 0, 0, 0, 0)] * 2),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-keep 0.5", [(1, 1, 0, 0, 0, 0), (4, 4, 0, 0, 0, 0)]),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-token 1", [(1, 1, 0, 0, 0, 0)] * 2),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-total 3", [(2, 1, 0, 0, 0, 0)] * 2),
        ("--fusion-plan 0,0,2,0,0,1", [(0, 0, 2, 0, 0, 1)] * 2),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-clip", [(0, 0, 2, 0, 1, 0), (0, 0, 8, 0, 3, 1)]),
    ],
)
def test_a_plan_for_each_size(flags, plans):
    model, stages = model_and_stages(f"--train-img-sizes 4 8 {flags}")
    assert [(stage.first_epoch, stage.size) for stage in stages] == [(0, (4, 4)), (2, (8, 8))]
    assert [stage.plan for stage in stages] == plans
    assert [(stage.token_counts[0], stage.token_counts[-1]) for stage in stages] == [
        (5, 5 - sum(plans[0])),
        (17, 17 - sum(plans[1])),
    ]
    assert (model.patch_embed.img_size, injected_plan(model)) == ((8, 8), plans[1])


def test_a_share_of_the_cost_is_that_of_the_size():
    flags = "--train-img-sizes 16 32 --model vim_nano_patch4_32 --fusion-strategy all --fusion-cost 0.7"
    model, stages = model_and_stages(flags)
    for stage in stages:
        with stage.entered(model):
            share = flops(model) / flops(model, [0] * 12)
        assert share == pytest.approx(0.7, abs=0.02)
        assert stage.flops == pytest.approx(flops_of(model, stage) * share)


def flops_of(model, stage):
    with stage.entered(model):
        return flops(model, [0] * len(model.layers))


def test_without_sizes_there_is_one_stage():
    model, stages = model_and_stages("--fusion-strategy all --fusion-token 1")
    assert stages == [Stage.of(model)]


def test_a_model_is_in_a_stage_inside_the_block_alone():
    fuse = "--fusion-strategy upper --fusion-layer 4 --fusion-keep 0.5 --fusion-metric residual"
    model, (small, large) = model_and_stages(f"--train-img-sizes 4 8 {fuse}")
    image, expected = torch.zeros(2, 3, 8, 8), model.eval()(torch.zeros(2, 3, 8, 8))
    before = [block.fusion for block in model.layers]
    with large.entered(model):
        assert [block.fusion for block in model.layers] == before  # its own size: nothing is put in anew
    with suppress(KeyboardInterrupt), small.entered(model):
        assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 1000)
        assert Stage.of(model)[1:] == small[1:]
        assert model.layers[4].fusion.method.metric == "residual"
        raise KeyboardInterrupt
    assert Stage.of(model)[1:] == large[1:]
    assert torch.equal(model(image), expected)
