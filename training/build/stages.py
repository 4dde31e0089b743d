"""Make the stages of a training: each has images of one size, and the plan of fusion for that size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import fusion
from fusion.injection import injected_method, injected_plan
from models_mamba import VisionMamba
from training.build.fusion import fuse, token_counts
from training.settings.settings import Settings
from training.settings.stages import first_epoch, train_sizes


class Stage(NamedTuple):
    """Hold the images that a model takes and what it fuses, for some epochs.

    Attributes:
        first_epoch: The first of these epochs.
        size: Pixels of the images, (height, width).
        plan: How many tokens fuse after each layer.
        method: How they fuse.
        token_counts: Lengths of the sequence before layer 0 and after each layer.
        flops: Multiply-adds of an image, forward.
    """

    first_epoch: int
    size: tuple[int, int]
    plan: tuple[int, ...]
    method: fusion.Method
    token_counts: tuple[int, ...]
    flops: int

    @classmethod
    def of(cls, model: VisionMamba, first_epoch: int = 0) -> "Stage":
        """Return the stage that a model is in."""
        plan, method = injected_plan(model), injected_method(model)
        return cls(first_epoch, model.patch_embed.img_size, plan, method, token_counts(model), fusion.flops(model))

    def enter(self, model: VisionMamba) -> None:
        """Let a model take images of this stage's size, and fuse by its plan; its position embedding stays as it is."""
        if model.patch_embed.img_size != self.size:
            model.patch_embed.set_input_size(self.size)
            fusion.inject(model, self.plan, self.method)

    @contextmanager
    def entered(self, model: VisionMamba) -> Iterator[None]:
        """Keep a model in this stage inside a `with` block, and then in the one that it was in before."""
        before = Stage.of(model)
        self.enter(model)
        try:
            yield
        finally:
            before.enter(model)


def build_stages(settings: Settings, model: VisionMamba) -> list[Stage]:
    """Make the stages of a training; a single one, that of the model, without --train-img-sizes.

    Args:
        settings: With the input size settled.
        model: The model, with its fusion; it is left as it was.

    Raises:
        ValueError: A size is too large, doesn't divide into patches, or is too small for the plan; names it.
    """
    own = Stage.of(model)
    if not settings.train_img_sizes:
        return [own]
    height, width = settings.input_size
    if height != width:
        raise ValueError(f"--train-img-sizes: are of square images, and --input-size is {height} {width}")
    if settings.train_img_sizes[-1] > height:
        raise ValueError(f"--train-img-sizes {settings.train_img_sizes[-1]}: is above --input-size {height}")
    try:
        return [_stage(settings, model, number, size) for number, size in enumerate(train_sizes(settings))]
    finally:
        own.enter(model)


def _stage(settings: Settings, model: VisionMamba, number: int, size: tuple[int, int]) -> Stage:
    """Make one stage, and leave the model in it."""
    try:
        if model.patch_embed.img_size != size:
            model.patch_embed.set_input_size(size)
            fuse(model, settings)
    except ValueError as error:
        raise ValueError(f"--train-img-sizes {size[0]}: {error}") from error
    return Stage.of(model, first_epoch(number, settings))
