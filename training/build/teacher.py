"""Build the trained model that teaches, for distillation."""

import torch
from timm.models import create_model, list_models
from torch import nn

from models_mamba import checkpoint_filter_fn
from training.data.classes import shortened
from training.data.transforms import normalisation
from training.settings.failure import check_known
from training.settings.kinds import keyword_arguments
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
    saved = checkpoint.load(settings.teacher_path, "--teacher-path")
    ours = settings.teacher_model in list_models(module="models_mamba")
    own = own_arguments(settings, saved) if ours else {}
    teacher = create_model(settings.teacher_model, num_classes=settings.nb_classes, **own)
    channels = own.get("in_chans", 3)
    if channels == 1:  # then the model's own mean and deviation, of colours, are not those it was trained with
        teacher.pretrained_cfg = teacher.pretrained_cfg | dict(zip(("mean", "std"), normalisation(1), strict=True))
    if classes and saved.get("classes") not in (None, classes):
        known = f"knows the classes {shortened(saved['classes'])}, and the images are of {shortened(classes)}"
        raise ValueError(f"--teacher-path {settings.teacher_path}: {known}")
    weights = checkpoint_filter_fn(saved, teacher) if ours else saved["model"]
    checkpoint.check_fit(teacher, weights, f"--teacher-path {settings.teacher_path}")
    teacher.load_state_dict(weights)
    teacher.eval().requires_grad_(False).to(device)
    for size in train_sizes(settings):
        try:
            teacher(torch.zeros(1, channels, *size, device=device))
        except Exception as error:  # each model refuses a size in its own way
            raise ValueError(f"--teacher-model {settings.teacher_model}: no images of {size}: {error}") from error
    return teacher


def own_arguments(settings: Settings, saved: dict) -> dict:
    """Return the arguments of a teacher that is one of our models: those of its run, for images of this run's size.

    Raises:
        ValueError: It takes grey images, and these have colours.
    """
    run = saved.get("settings", {})
    if run.get("model") != settings.teacher_model:
        return {"img_size": settings.input_size}
    channels = run.get("in_chans", 3)
    if channels not in (3, settings.in_chans):
        raise ValueError(f"--teacher-path {settings.teacher_path}: takes images of {channels} channel, not of 3")
    return {"img_size": settings.input_size, "in_chans": channels, **keyword_arguments(run.get("model_kwargs"))}
