"""Declare the facts that follow from settings, data and machine: computed once and recorded beside the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.settings.flag import Flag, names
from training.settings.settings import Settings


def fact(help: str, **more) -> Any:
    """Declare a field of Facts; `more` are attributes of Flag that make sense for a fact."""
    return field(metadata={"flag": Flag(help=help, **more)})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Hold the entries of args.json, and of a checkpoint's settings, that are not flags."""

    mixed: bool = fact("whether images are mixed")
    token_counts: tuple[int, ...] = fact("the fusion plan's tokens", fixed=True)
    stages: tuple[tuple[int, int], ...] = fact(
        "the first epoch and the image size of each stage", fixed=True, compared=False
    )
    stage_token_counts: tuple[tuple[int, ...], ...] = fact(
        "the fusion plan's tokens in each stage", fixed=True, compared=False
    )
    flops: int = fact("multiply-adds of an image, forward")
    weights: str = fact("where the weights come from", place=True)
    processes: int = fact("the number of processes", fixed=True, cost=True)
    global_batch: int = fact("images in a step of all processes", shown=True)
    scaled_lr: float = fact("the learning rate for that many images", shown=True)
    updates_per_epoch: int | None = fact("steps of an epoch if each has a learning rate of its own, else 0")
    last_epoch: int | None = fact("epochs of the schedule, its cooldown included")
    versions: Mapping[str, str] = fact("of Python, PyTorch, timm and this code", compared=False)
    hardware: str = fact("the device", compared=False)
    date: str = fact("the day that the run began", compared=False)


def recorded(**wanted) -> tuple[str, ...]:
    """Return the names of flags and facts in a run's record that have these attributes, such as cost=True."""
    return names(Settings, **wanted) + names(Facts, **wanted)
