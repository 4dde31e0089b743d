"""Build the training loss that fits the targets."""

from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn


def create_criterion(mixed: bool, smoothing: float) -> nn.Module:
    """Build the cross entropy of logits [B, classes] with targets [B, classes] if images are mixed, else labels [B].

    Mixup smooths its targets itself, so smoothing has an effect only if images are not mixed.

    Args:
        mixed: Targets are probabilities.
        smoothing: Label smoothing.
    """
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def binary_cross_entropy(soft: bool = False, smoothing: float = 0.0) -> nn.Module:
    """Build the binary cross entropy of each class's sigmoid; logits and targets as in create_criterion.

    Args:
        soft: True takes the targets as they are. False counts every class above 0 as right, as in DeiT III (arXiv
            2204.07118, section 3): an image mixed from two images shows both.
        smoothing: Label smoothing of targets [B], used only with soft.
    """
    return BinaryCrossEntropy(smoothing) if soft else BinaryCrossEntropy(0.0, target_threshold=0.0)
