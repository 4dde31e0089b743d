"""The loss follows from the targets."""

import pytest
import torch
import torch.nn.functional as F

from training.losses import create_criterion

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


def test_binary_with_and_without_mixing():
    one_hot = F.one_hot(LABEL, 3).float()
    expected = F.binary_cross_entropy_with_logits(LOGITS, one_hot).item()
    assert create_criterion(False, 0.0, binary=True)(LOGITS, LABEL).item() == pytest.approx(expected)
    expected = F.binary_cross_entropy_with_logits(LOGITS, 0.7 * one_hot + 0.1).item()
    assert create_criterion(False, 0.3, binary=True)(LOGITS, LABEL).item() == pytest.approx(expected)
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGET).item()
    assert create_criterion(True, 0.3, binary=True)(LOGITS, TARGET).item() == pytest.approx(expected)
