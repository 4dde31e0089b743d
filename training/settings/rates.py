"""The learning rates of a schedule: where it starts, its largest, and where it ends."""

import argparse
from typing import NamedTuple

IMAGES = 512  # in a step that takes flags' rates as they are
FALLING = ("cosine", "tanh", "poly")  # schedules that end at --min-lr
BOUNDED = (*FALLING, "plateau")  # and those that don't go below it


class Rates(NamedTuple):
    """A schedule's rates, all for the same number of images a step."""

    lr: float
    warmup_lr: float
    min_lr: float


def scaled_rates(args: argparse.Namespace, images: int) -> Rates:
    """The rates that flags ask for, scaled linearly to the images of a step unless they are to be taken as they are."""
    scale = 1 if args.unscale_lr else images / IMAGES
    return Rates(args.lr * scale, args.warmup_lr * scale, args.min_lr * scale)
