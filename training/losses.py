"""The training loss that fits the targets."""

from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn


def create_criterion(mixed: bool, smoothing: float) -> nn.Module:
    """Cross entropy of logits [B, classes] with targets [B, classes] where images are mixed, else [B].

    Mixup smooths its targets itself, so smoothing matters only without it.
    """
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
