"""Sum up the steps of an epoch, reading them from the device now and then, and decide what a bad step leads to."""

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSteps:
    """Say what happens if a loss or a gradient is not finite; such a step changes no weights.

    Attributes:
        allowed: How many such steps an epoch may have before training stops.
        skip_losses: Skip a batch whose loss is not finite, and don't count its step as bad.
        replace_losses: Count a loss that is not finite as 0 in the mean, and don't count its step as bad.
    """

    allowed: int = 0
    skip_losses: bool = False
    replace_losses: bool = False


class Step(NamedTuple):
    """Describe a step that was started; the device may still be computing it.

    Attributes:
        epoch, number: The epoch, and the step's number in it.
        images: Number of images in its batch.
        rate: Its learning rate.
        outcome: On the device, float64 [4]: the loss; the gradient's norm; the rank of a process whose loss is not
            finite, or -1; 1 if the step failed only because the loss scale was too large, else 0.
    """

    epoch: int
    number: int
    images: int
    rate: float
    outcome: Tensor


def steps_between_readings(device: torch.device) -> int:
    """Return how many steps to take between two readings of their numbers: reading waits for a GPU, not for a CPU."""
    return 1 if device.type == "cpu" else 50


@dataclass
class EpochSums:
    """Hold the sums of an epoch so far, on this process: plain numbers, and the steps that are not yet added.

    Attributes:
        steps: Batches so far, including those in `unread`.
        images: Images whose losses count.
        loss: Sum of these images' losses.
        norm, norms: Sum and number of the finite gradient norms.
        skipped: Steps that changed no weights.
        bad: Skipped steps that were not expected.
        broken: Images that could not be read, on all processes together.
        rate: The last step's learning rate; under layer-wise decay, the largest.
        seconds, data_seconds: Time spent, and the part of it that waited for images.
        last_loss, last_norm: Loss and gradient norm of the last step that changed weights.
        unread: Steps whose numbers are still to be read from the device.
    """

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    norm: float = 0.0
    norms: int = 0
    skipped: int = 0
    bad: int = 0
    broken: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    data_seconds: float = 0.0
    last_loss: float = math.nan
    last_norm: float = math.nan
    unread: list[tuple[Step, BadSteps]] = field(default_factory=list, init=False, repr=False, compare=False)

    def note(self, step: Step, policy: BadSteps) -> None:
        """Count a step without waiting for it."""
        self.steps, self.rate = self.steps + 1, step.rate
        self.unread.append((step, policy))

    def read(self) -> None:
        """Wait for the unread steps and add them to the sums.

        Raises:
            FloatingPointError: Too many steps are bad; names epoch, step, loss, gradient norm and learning rate.
        """
        unread, self.unread = self.unread, []
        if unread:
            outcomes = torch.stack([step.outcome for step, _ in unread]).tolist()
            for (step, policy), outcome in zip(unread, outcomes, strict=True):
                self._add(step, policy, *outcome)

    def state_dict(self) -> dict[str, int | float]:
        """Return the sums over all steps, read first; numbers that are not known yet (NaN) are left out."""
        self.read()
        numbers = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return {name: number for name, number in numbers.items() if math.isfinite(number)}

    def _add(self, step: Step, policy: BadSteps, loss: float, norm: float, culprit: float, overscaled: float) -> None:
        losses_are_finite = culprit < 0
        if losses_are_finite or policy.replace_losses:
            self.loss += step.images * (loss if math.isfinite(loss) else 0.0)
            self.images += step.images
        if losses_are_finite and math.isfinite(norm):
            self.norm, self.norms = self.norm + norm, self.norms + 1
            self.last_loss, self.last_norm = loss, norm
            return
        self.skipped += 1
        expected = overscaled if losses_are_finite else policy.skip_losses or policy.replace_losses
        self.bad += not expected
        if self.bad > policy.allowed:
            raise FloatingPointError(
                f"epoch {step.epoch}, step {step.number}: {_what_is_bad(loss, norm, int(culprit))}; the last good step "
                f"had loss {self.last_loss:.4f}, gradient norm {self.last_norm:.4g}, learning rate {step.rate:.3g}"
            )


def _what_is_bad(loss: float, norm: float, culprit: int) -> str:
    if culprit < 0:
        return f"the gradient norm is {norm}"
    return f"the loss of process {culprit} is not finite" if math.isfinite(loss) else f"the loss is {loss}"
