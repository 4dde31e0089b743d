"""What an optimizer has gathered, by the names of weights: other flags group these in other ways."""

from copy import deepcopy

import torch
from torch import nn


def group_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of the model's weights in each of the optimizer's groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def load_optimizer(
    optimizer: torch.optim.Optimizer, saved: dict, now: list[list[str]], before: list[list[str]] | None
) -> None:
    """Load what an optimizer has gathered, and keep its hyperparameters: those are the flags given now.

    Where weights are grouped in another way now, as by a weight decay of 0 or a first --layer-decay, each finds its own
    by its name; one that didn't learn before starts anew.

    Args:
        optimizer: Takes over what was gathered.
        saved: Another one's state_dict.
        now: Names of the weights in each of the optimizer's groups.
        before: Those of the other's; None where they are not known, and taken for the same.
    """
    if before is not None and before != now:
        saved = _regrouped(saved, before, optimizer.state_dict(), now)
    given = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, hyperparameters in zip(optimizer.param_groups, given, strict=True):
        group.update(hyperparameters)


def _regrouped(saved: dict, before: list[list[str]], fresh: dict, now: list[list[str]]) -> dict:
    """What was saved, in the groups of a fresh state_dict."""
    gathered, place = saved["state"], _numbers(saved, before)
    state = {
        number: gathered[place[name]] for name, number in _numbers(fresh, now).items() if place.get(name) in gathered
    }
    # Some optimizers count a group's steps in it; all groups have made the same.
    steps = {name: value for name, value in saved["param_groups"][0].items() if name == "step"}
    return {"state": state, "param_groups": [group | deepcopy(steps) for group in fresh["param_groups"]]}


def _numbers(state: dict, names: list[list[str]]) -> dict[str, int]:
    """By which number a state_dict knows each weight."""
    return {
        name: number
        for group, own in zip(state["param_groups"], names, strict=True)
        for name, number in zip(own, group["params"], strict=True)
    }
