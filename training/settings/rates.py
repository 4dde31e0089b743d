"""Scale the learning rates of a schedule: where it starts, its largest, and where it ends."""

from typing import NamedTuple

from training.settings.learning import RateSettings

IMAGES = 512  # a step of this many images takes the flags' rates unscaled
FALLING = ("cosine", "tanh", "poly")  # schedules that end at --min-lr
BOUNDED = (*FALLING, "plateau")  # schedules that never fall below --min-lr


class Rates(NamedTuple):
    """Hold a schedule's rates, all for the same number of images per step."""

    lr: float
    warmup_lr: float
    min_lr: float


def scaled_rates(settings: RateSettings, images: int) -> Rates:
    """Return the flags' rates, scaled linearly to the number of images in a step, or unscaled with --unscale-lr."""
    scale = 1 if settings.unscale_lr else images / IMAGES
    return Rates(settings.lr * scale, settings.warmup_lr * scale, settings.min_lr * scale)
