"""What the steps of an epoch add up to, read from the device now and then; and what happens where one goes wrong."""

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSteps:
    """What happens where a loss or a gradient is not finite; the step then changes no weights.

    Attributes:
        allowed: How many such steps an epoch may have before training stops.
        skip_losses: A batch whose loss is not finite is passed over and doesn't count as bad.
        replace_losses: A loss that is not finite counts as 0 in the mean, and its step not as bad.
    """

    allowed: int = 0
    skip_losses: bool = False
    replace_losses: bool = False


class Step(NamedTuple):
    """A step that was taken, and may still be computed.

    Attributes:
        epoch, number: Which one.
        images: In its batch.
        rate: Its learning rate.
        outcome: On the device, float64 [4]: the loss; the gradient's norm; a process whose loss is not finite, -1 if
            none; whether only the scale of the loss was too large.
    """

    epoch: int
    number: int
    images: int
    rate: float
    outcome: Tensor


def steps_between_readings(device: torch.device) -> int:
    """How many steps are taken before their numbers are asked for: a GPU is waited for then, a CPU never lags."""
    return 1 if device.type == "cpu" else 50


@dataclass
class EpochSums:
    """What an epoch has summed up so far, on this process: plain numbers, and the steps that are not yet in them.

    Attributes:
        steps: Batches that were met, those that are not read included.
        images: Images whose losses count.
        loss: Sum of these images' losses.
        norm, norms: Sum and number of the finite gradient norms.
        skipped: Steps that changed no weights.
        bad: Those of them that were not expected.
        broken: Images that could not be read, of all processes.
        rate: The last step's learning rate; under layer-wise decay, the largest.
        seconds, data_seconds: Time spent, and the part of it that waited for images.
        last_loss, last_norm: Those of the last step that changed weights.
        unread: Steps that were taken and are not read.
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
        """Wait for the steps that are not read, and add them up.

        Raises:
            FloatingPointError: One more is bad than allowed; names epoch, step, loss, gradient norm and learning rate.
        """
        unread, self.unread = self.unread, []
        if unread:
            outcomes = torch.stack([step.outcome for step, _ in unread]).tolist()
            for (step, policy), outcome in zip(unread, outcomes, strict=True):
                self._add(step, policy, *outcome)

    def state_dict(self) -> dict[str, int | float]:
        """The numbers, of all steps; those that are not known yet are left out."""
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
