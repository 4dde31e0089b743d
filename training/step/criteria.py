"""The training loss that fits the targets."""

from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn


def create_criterion(mixed: bool, smoothing: float) -> nn.Module:
    """Cross entropy of logits [B, classes] with targets [B, classes] where images are mixed, else [B].

    Mixup smooths its targets itself, so smoothing matters only without it.

    Args:
        mixed: Targets are probabilities.
        smoothing: Label smoothing.
    """
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def binary_cross_entropy(soft: bool = False, smoothing: float = 0.0) -> nn.Module:
    """Cross entropy of each class's own sigmoid; logits and targets as in create_criterion.

    Args:
        soft: Targets count as they are. Else every class above 0 counts as right, as in DeiT III (arXiv 2204.07118,
            section 3): an image that is mixed of two shows both.
        smoothing: Label smoothing of targets [B], where they are soft.
    """
    return BinaryCrossEntropy(smoothing) if soft else BinaryCrossEntropy(0.0, target_threshold=0.0)
