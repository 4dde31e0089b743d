"""What an optimizer has gathered, by the names of weights: other flags group these in other ways."""

from copy import deepcopy

import torch
from torch import nn


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict:
    """Its state_dict, each group with its weights' names in `param_names`, as PyTorch has them where it knows them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved["param_names"] = [names[parameter] for parameter in group["params"]]
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict, model: nn.Module) -> None:
    """Load what an optimizer has gathered, and keep its hyperparameters: those are the flags given now.

    Where weights are grouped in another way now, as by a weight decay of 0 or a first --layer-decay, each finds its own
    by its name; a weight that didn't learn before starts anew. Checkpoints without names must be grouped as now.
    """
    now = optimizer_state(optimizer, model)
    if all("param_names" in group for group in saved["param_groups"]) and _names(saved) != _names(now):
        saved = _regrouped(saved, now)
    given = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, hyperparameters in zip(optimizer.param_groups, given, strict=True):
        group.update(hyperparameters)


def _names(state: dict) -> list[list[str]]:
    return [group["param_names"] for group in state["param_groups"]]


def _regrouped(saved: dict, now: dict) -> dict:
    """A state_dict of what was saved, in the groups of now."""
    numbers = {
        name: number
        for group in saved["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    state = {
        number: saved["state"][numbers[name]]
        for group in now["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if numbers.get(name) in saved["state"]
    }
    # Some optimizers count a group's steps in it; all groups have made the same.
    steps = {name: value for name, value in saved["param_groups"][0].items() if name == "step"}
    return {"state": state, "param_groups": [group | deepcopy(steps) for group in now["param_groups"]]}
