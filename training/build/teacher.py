"""Build the trained model that teaches, for distillation."""

import torch
from timm.models import create_model, list_models
from torch import nn

from models_mamba import checkpoint_filter_fn
from training.data.classes import shortened
from training.settings.failure import check_known
from training.settings.learning import LossSettings
from training.settings.settings import Settings
from training.settings.stages import train_sizes
from training.state import checkpoint


def check_teacher(settings: LossSettings) -> None:
    """Raise ValueError, with the nearest names, if there is no teacher of this name."""
    if settings.teacher_model:
        check_known("--teacher-model", settings.teacher_model, list_models())


def build_teacher(settings: Settings, device: torch.device, classes: list[str] | None = None) -> nn.Module:
    """Build the trained model that flags name, timm's or ours, ready to teach on a device.

    Args:
        settings: The teacher, its images and the number of classes.
        device: Where it computes.
        classes: Names of the classes to learn, if they are known.

    Raises:
        ValueError: Its weights don't fit, its classes differ, or it can't take images of this size.
    """
    ours = settings.teacher_model in list_models(module="models_mamba")
    size = {"img_size": settings.input_size} if ours else {}
    teacher = create_model(settings.teacher_model, num_classes=settings.nb_classes, **size)
    saved = checkpoint.load(settings.teacher_path, "--teacher-path")
    if classes and saved.get("classes") not in (None, classes):
        known = f"knows the classes {shortened(saved['classes'])}, and the images are of {shortened(classes)}"
        raise ValueError(f"--teacher-path {settings.teacher_path}: {known}")
    weights = checkpoint_filter_fn(saved, teacher) if ours else saved["model"]
    checkpoint.check_fit(teacher, weights, f"--teacher-path {settings.teacher_path}")
    teacher.load_state_dict(weights)
    teacher.eval().requires_grad_(False).to(device)
    for size in train_sizes(settings):
        try:
            teacher(torch.zeros(1, 3, *size, device=device))
        except Exception as error:  # each model refuses a size in its own way
            raise ValueError(f"--teacher-model {settings.teacher_model}: no images of {size}: {error}") from error
    return teacher
