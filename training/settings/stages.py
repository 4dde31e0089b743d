"""Divide the epochs of a training into stages, each with images of one size."""

from training.settings.settings import Settings


def train_sizes(settings: Settings) -> list[tuple[int, int]]:
    """Return the image size of each stage, (height, width): those of --train-img-sizes, or else the input size alone.

    Args:
        settings: With the input size settled.
    """
    return [(side, side) for side in settings.train_img_sizes or ()] or [settings.input_size]


def stage_of(epoch: int, settings: Settings) -> int:
    """Return the number of an epoch's stage; stages are equally long, and a cooldown belongs to the last."""
    stages = len(train_sizes(settings))
    return min(epoch * stages // settings.epochs, stages - 1)


def first_epoch(stage: int, settings: Settings) -> int:
    """Return the first epoch of a stage."""
    return -(-stage * settings.epochs // len(train_sizes(settings)))
