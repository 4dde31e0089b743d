"""Compute what a step minimises: a loss of the model's logits, alone or with a teacher or a second sub-model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.task import DistillationTeacher
from torch import Tensor, nn

from training.data.transforms import normalisation


class Objective(Protocol):
    """Compute the loss [] of a model on images [B, C, H, W] with labels [B] or targets [B, classes]."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Classification:
    """Apply a criterion to logits and targets, and nothing else."""

    criterion: nn.Module

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(model(images), targets)


@dataclass(frozen=True)
class Distillation:
    """Add to a criterion the distance from a teacher's logits (DeiT, arXiv 2012.12877, section 4).

    Attributes:
        criterion: Loss of logits and targets.
        teacher: A trained model with its own normalisation; if it takes colours, grey images become three equal
            channels.
        hard: True learns the teacher's most likely class; False its probabilities, by the Kullback-Leibler divergence.
        alpha: The teacher's share of the loss.
        tau: Temperature of the probabilities.
        in_chans: Channels of the images.
    """

    criterion: nn.Module
    teacher: DistillationTeacher
    hard: bool
    alpha: float
    tau: float
    in_chans: int = 3

    @cached_property
    def renormalisation(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift [1, 3, 1, 1] that turn our normalisation of images into the teacher's."""
        theirs = self.teacher.mean_kd, self.teacher.std_kd
        mean, std = (rearrange(theirs[0].new_tensor(c), "c -> 1 c 1 1") for c in normalisation(self.in_chans))
        return std / theirs[1], (mean - theirs[0]) / theirs[1]

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        logits = model(images)
        scale, shift = self.renormalisation
        with torch.no_grad():
            taught = self.teacher(images * scale + shift)
        return (1 - self.alpha) * self.criterion(logits, targets) + self.alpha * self.unlikeness(logits, taught)

    def unlikeness(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return how far the logits are from the teacher's, both [B, classes], as a scalar []."""
        if self.hard:
            return F.cross_entropy(logits, taught.argmax(dim=1))
        ours, theirs = (F.log_softmax(either.float() / self.tau, dim=1) for either in (logits, taught))
        # Divide by batch and classes; tau**2 keeps gradients the same size at any temperature, as in DeiT.
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) * self.tau**2 / logits.numel()


@dataclass(frozen=True)
class Cosub:
    """Train two sub-models, drawn by drop path, on the same images, and let each also teach the other.

    As published (Co-training 2^L Submodels, arXiv 2212.04884, section 3), they teach by the sigmoid of each class.

    Attributes:
        criterion: Loss of logits and targets.
    """

    criterion: nn.Module

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        first, second = model(torch.cat((images, images))).chunk(2)
        loss = self.criterion(first, targets) + self.criterion(second, targets)
        for taught, teacher in ((first, second), (second, first)):
            loss = loss + F.binary_cross_entropy_with_logits(taught, teacher.detach().sigmoid())
        return loss / 4
