"""What the steps of an epoch add up to, and what happens where one goes wrong."""

from dataclasses import dataclass


@dataclass
class EpochSums:
    """What an epoch has summed up so far, on this process: plain numbers, which a checkpoint can hold.

    Attributes:
        steps: Batches that were met.
        images: Images in those whose loss was finite.
        loss: Sum of these images' losses.
        norm, norms: Sum and number of the finite gradient norms.
        skipped: Steps that changed no weights.
        bad: Those of them that were not expected.
        broken: Images that could not be read, of all processes.
        rate: The last step's learning rate; under layer-wise decay, the largest.
        seconds, data_seconds: Time spent, and the part of it that waited for images.
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


@dataclass(frozen=True)
class BadSteps:
    """What happens where a loss or a gradient is not finite; the step then changes no weights.

    Attributes:
        allowed: How many such steps an epoch may have before training stops.
        skip_losses: A batch whose loss is not finite is passed over and doesn't count as bad.
        replace_losses: A loss that is not finite becomes a number, from which no gradient comes.
    """

    allowed: int = 0
    skip_losses: bool = False
    replace_losses: bool = False
