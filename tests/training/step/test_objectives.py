"""What a step minimises, against the formulas."""

import pytest
import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import nn

from training.data.transforms import normalisation
from training.step.objectives import Classification, Cosub, Distillation

IMAGES = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
CRITERION = nn.CrossEntropyLoss()


class Linear(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


def distilled(hard=False, alpha=0.5, tau=1.0, teacher=None):
    model, teacher = Linear(0), teacher or Linear(1)
    objective = Distillation(CRITERION, DistillationTeacher(teacher), hard, alpha, tau)
    return model(IMAGES), teacher(IMAGES), objective(model, IMAGES, LABELS)


def test_classification_is_the_criterion():
    model = Linear(0)
    assert Classification(CRITERION)(model, IMAGES, LABELS) == CRITERION(model(IMAGES), LABELS)


def test_a_teacher_without_a_share_changes_nothing():
    logits, _, loss = distilled(alpha=0.0)
    torch.testing.assert_close(loss, CRITERION(logits, LABELS))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft(tau):
    logits, taught, loss = distilled(alpha=1.0, tau=tau)
    ours, theirs = (logits / tau).softmax(1), (taught / tau).softmax(1)
    expected = (theirs * (theirs.log() - ours.log())).sum() * tau**2 / 12
    torch.testing.assert_close(loss, expected)


def test_hard():
    logits, taught, loss = distilled(hard=True, alpha=0.3)
    expected = 0.7 * CRITERION(logits, LABELS) + 0.3 * CRITERION(logits, taught.argmax(1))
    torch.testing.assert_close(loss, expected)


def test_only_the_student_learns():
    teacher = Linear(1)
    distilled(teacher=teacher)[2].backward()
    assert teacher.head.weight.grad is None


def test_a_teacher_sees_images_in_its_own_normalisation():
    class Seen(Linear):
        pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

        def forward(self, x):
            self.images = x
            return super().forward(x)

    teacher = Seen(1)
    objective = Distillation(CRITERION, DistillationTeacher(teacher), False, 0.5, 1.0)
    objective(Linear(0), IMAGES, LABELS)
    std, mean = (torch.tensor(c).view(1, 3, 1, 1) for c in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    torch.testing.assert_close(teacher.images, (IMAGES * std + mean - 0.5) / 0.5)


def test_sub_models_learn_from_labels_and_from_each_other():
    """By binary cross entropy, as published."""
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    targets = F.one_hot(LABELS, 3).float()
    sizes = []

    def model(images):
        sizes.append(len(images))
        return torch.cat((first, second))

    loss = Cosub(nn.CrossEntropyLoss())(model, IMAGES, targets)
    labels = CRITERION(first, targets) + CRITERION(second, targets)
    binary = F.binary_cross_entropy_with_logits
    mutual = binary(first, second.sigmoid()) + binary(second, first.sigmoid())
    torch.testing.assert_close(loss, (labels + mutual) / 4)
    assert sizes == [8]


def test_a_teacher_sees_grey_images_in_three_channels_as_it_normalises_them():
    grey = torch.rand(4, 1, 2, 2)
    mean, std = (values[0] for values in normalisation(1))

    def student(x):
        return Linear(0)(x.expand(-1, 3, -1, -1))

    teacher = DistillationTeacher(Linear(1))
    teacher.mean_kd, teacher.std_kd = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    loss = Distillation(CRITERION, teacher, True, 1.0, 1.0, in_chans=1)(student, (grey - mean) / std, LABELS)
    taught = Linear(1)(((grey - 0.5) / 0.25).expand(-1, 3, -1, -1))
    torch.testing.assert_close(loss, F.cross_entropy(student((grey - mean) / std), taught.argmax(1)))
