"""What an optimizer has gathered stays with its weight, however weights are grouped."""

import pytest
import torch
from timm.optim import create_optimizer_v2

from models_mamba import VisionMamba
from training.state.optimizer_state import group_names, load_optimizer


def trained(opt="adamw", frozen=(), **options):
    """A model, and its optimizer after two steps."""
    torch.manual_seed(0)
    model = VisionMamba(img_size=8, patch_size=4, embed_dim=16, depth=2, num_classes=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    optimizer = create_optimizer_v2(model, opt, lr=0.01, **options)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(1, 3, 8, 8)).square().sum().backward()
    optimizer.step()


def by_name(model, optimizer):
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("opt", ["adamw", "adan", "lamb", "momentum"])
@pytest.mark.parametrize("before", [{"weight_decay": 0.05}, {"weight_decay": 0.0}, {"layer_decay": 0.7}])
def test_each_weight_finds_its_own(opt, before):
    model, optimizer = trained(opt, **before)
    saved, before = optimizer.state_dict(), group_names(optimizer, model)
    for now in ({"weight_decay": 0.05}, {"weight_decay": 0.0}, {"layer_decay": 0.7}, {"layer_decay": 0.5}):
        other, fresh = trained(opt, **now)
        given = ("weight_decay", "lr_scale", "lr")
        expected = [{name: group.get(name) for name in given} for group in fresh.param_groups]
        for state in fresh.state.values():
            state.clear()
        load_optimizer(fresh, saved, group_names(fresh, other), before)
        torch.testing.assert_close(by_name(other, fresh), by_name(model, optimizer), rtol=0, atol=0)
        assert [{name: group.get(name) for name in given} for group in fresh.param_groups] == expected
        assert [group.get("step") for group in fresh.param_groups[:1]] == [optimizer.param_groups[0].get("step")]
        step(other, fresh)


def test_a_weight_that_did_not_learn_starts_anew_and_one_that_no_longer_learns_is_left_out():
    model, optimizer = trained(frozen=("pos_embed", "head.weight"))
    other, fresh = trained(frozen=("head.bias", "head.weight"))
    fresh.state.clear()
    before = group_names(optimizer, model)
    load_optimizer(fresh, optimizer.state_dict(), group_names(fresh, other), before)
    names = {name for name, parameter in other.named_parameters() if parameter in fresh.state}
    assert names == {name for name, _ in model.named_parameters()} - {"pos_embed", "head.weight", "head.bias"}


def test_checkpoints_without_names_are_grouped_as_now():
    model, optimizer = trained()
    other, fresh = trained()
    fresh.state.clear()
    load_optimizer(fresh, optimizer.state_dict(), group_names(fresh, other), None)
    torch.testing.assert_close(by_name(other, fresh), by_name(model, optimizer), rtol=0, atol=0)
    other, fresh = trained(layer_decay=0.5)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        load_optimizer(fresh, optimizer.state_dict(), group_names(fresh, other), None)
