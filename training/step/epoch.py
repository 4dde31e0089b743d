"""Group what an epoch of training needs: what learns, what it learns from, and how."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.data import Mixup
from torch import nn

from training.step.average import WeightAverage
from training.step.objectives import Objective
from training.step.sums import BadSteps


@dataclass(frozen=True)
class Learner:
    """Hold what a step changes, and the loss that it minimises.

    Attributes:
        model: Maps images [B, C, H, W] to logits [B, classes]; with several processes, wrapped in
            DistributedDataParallel.
        objective: Gives the loss of the model on images and their targets.
        optimizer: Steps once a batch.
        ema: Average of the weights, updated by every step that changes them.
        scaler: Scales the loss, for fp16; steps skipped while it finds its scale don't count as bad.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    ema: WeightAverage | None = None
    scaler: torch.amp.GradScaler | None = None


@dataclass(frozen=True)
class Batches:
    """Hold the images of an epoch, and how they are mixed.

    Attributes:
        loader: Batches of images and labels [B]; only the remaining ones of an epoch that is resumed.
        mixup: Mixes images and turns labels into targets [B, classes].
        whole: If broken images are left out, the images of a batch without broken ones; else None. The images that are
            left weigh the same on every process; if one process has none, all skip the step.
    """

    loader: Iterable
    mixup: Mixup | None = None
    whole: int | None = None


@dataclass(frozen=True)
class StepOptions:
    """Say how a step is taken.

    Attributes:
        seed: Determines, together with epoch, step and rank, everything that is random in a step.
        autocast: Type in which mixed precision computes; None for fp32.
        clip_grad: Largest norm of the gradient; no clipping if None.
        accumulate: Number of parts of a batch that go through the model one after another, to save memory.
        train_mode: If False, dropout and stochastic depth are off.
        bad_steps: What to do if a loss or a gradient is not finite.
        read_every: Number of steps after which their numbers are read; steps_between_readings if None.
    """

    seed: int = 0
    autocast: torch.dtype | None = None
    clip_grad: float | None = None
    accumulate: int = 1
    train_mode: bool = True
    bad_steps: BadSteps = BadSteps()
    read_every: int | None = None
