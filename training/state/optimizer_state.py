"""Restore an optimizer's state by the names of weights, since other flags may group the weights differently."""

from copy import deepcopy

import torch
from torch import nn


def group_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """Return the names of the model's weights in each of the optimizer's groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def load_optimizer(
    optimizer: torch.optim.Optimizer, saved: dict, now: list[list[str]], before: list[list[str]] | None
) -> None:
    """Load an optimizer's saved state, but keep its hyperparameters: they follow the flags given now.

    If the weights are grouped differently now, for example because of a weight decay of 0 or a new --layer-decay, each
    weight finds its state by name. A weight that was not trained before starts without state.

    Args:
        optimizer: The optimizer that receives the state.
        saved: The state_dict of the optimizer that was saved.
        now: Names of the weights in each of the optimizer's groups.
        before: Names of the weights in each of the saved optimizer's groups; if None, assumed to be the same as `now`.
    """
    if before is not None and before != now:
        saved = _regrouped(saved, before, optimizer.state_dict(), now)
    given = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, hyperparameters in zip(optimizer.param_groups, given, strict=True):
        group.update(hyperparameters)


def _regrouped(saved: dict, before: list[list[str]], fresh: dict, now: list[list[str]]) -> dict:
    """Return the saved state, rearranged into the groups of a fresh state_dict."""
    gathered, place = saved["state"], _numbers(saved, before)
    state = {
        number: gathered[place[name]] for name, number in _numbers(fresh, now).items() if place.get(name) in gathered
    }
    # Some optimizers count steps in each group; the count is the same in all groups.
    steps = {name: value for name, value in saved["param_groups"][0].items() if name == "step"}
    return {"state": state, "param_groups": [group | deepcopy(steps) for group in fresh["param_groups"]]}


def _numbers(state: dict, names: list[list[str]]) -> dict[str, int]:
    """Map the name of each weight to its number in a state_dict."""
    return {
        name: number
        for group, own in zip(state["param_groups"], names, strict=True)
        for name, number in zip(own, group["params"], strict=True)
    }
