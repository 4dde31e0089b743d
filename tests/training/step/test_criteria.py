"""The loss follows from the targets."""

import pytest
import torch
import torch.nn.functional as F

from training.step.criteria import binary_cross_entropy, create_criterion

LOGITS = torch.tensor([[2.0, 0.5, -1.0]])
LABEL = torch.tensor([1])
TARGET = torch.tensor([[0.2, 0.8, 0.0]])


def test_plain_smoothed_and_mixed():
    plain = F.cross_entropy(LOGITS, LABEL).item()
    smoothed = F.cross_entropy(LOGITS, LABEL, label_smoothing=0.3).item()
    assert create_criterion(False, 0.0)(LOGITS, LABEL).item() == pytest.approx(plain)
    assert create_criterion(False, 0.3)(LOGITS, LABEL).item() == pytest.approx(smoothed)
    target = TARGET
    assert create_criterion(True, 0.3)(LOGITS, target).item() == pytest.approx(F.cross_entropy(LOGITS, target).item())


def test_binary_counts_every_class_that_was_mixed_in_as_right():
    """As in DeiT III: targets.gt(0.0)."""
    expected = F.binary_cross_entropy_with_logits(LOGITS, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(binary_cross_entropy()(LOGITS, TARGET), expected)
    expected = F.binary_cross_entropy_with_logits(LOGITS, F.one_hot(LABEL, 3).float())
    torch.testing.assert_close(binary_cross_entropy()(LOGITS, LABEL), expected)


def test_binary_with_targets_as_they_are():
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGET)
    torch.testing.assert_close(binary_cross_entropy(soft=True)(LOGITS, TARGET), expected)
    smoothed = F.binary_cross_entropy_with_logits(LOGITS, 0.7 * F.one_hot(LABEL, 3).float() + 0.1)
    torch.testing.assert_close(binary_cross_entropy(soft=True, smoothing=0.3)(LOGITS, LABEL), smoothed)
