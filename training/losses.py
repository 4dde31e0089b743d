"""The training loss that fits the targets."""

from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn


def create_criterion(mixed: bool, smoothing: float, binary: bool = False) -> nn.Module:
    """Cross entropy of logits [B, classes] with targets [B, classes] where images are mixed, else [B].

    Mixup smooths its targets itself, so smoothing matters only without it.

    Args:
        mixed: Targets are probabilities.
        smoothing: Label smoothing.
        binary: Each class has a sigmoid of its own, as in DeiT III (arXiv 2204.07118, section 3).
    """
    if binary:
        return BinaryCrossEntropy(0.0 if mixed else smoothing)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
