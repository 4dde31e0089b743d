"""Build the model that settings ask for."""

import re
from dataclasses import replace
from typing import Any

from timm.models import create_model, list_models
from torch import nn

from models_mamba import VisionMamba
from training.build.fusion import fuse
from training.settings.failure import check_known, naming_flags
from training.settings.model import ModelChoice
from training.settings.settings import Settings


def check_model(name: str) -> None:
    """Raise ValueError, with the nearest names, if there is no model of this name."""
    check_known("--model", name, list_models(module="models_mamba"))


def build_model(settings: ModelChoice, **options) -> VisionMamba:
    """Build a model without fusion.

    Args:
        settings: The model's name and its images. If they give no image size, the model's default applies; read it
            from model.patch_embed.img_size.
        options: Further arguments of VisionMamba.

    Raises:
        ValueError: There is no such model, or it can't take images of this size.
    """
    check_model(settings.model)
    image_size = {"img_size": settings.input_size} if settings.input_size else {}
    try:
        model = create_model(settings.model, in_chans=settings.in_chans, **image_size, **options)
    except (RuntimeError, TypeError, MemoryError) as error:  # what a size that is too large can raise
        if not settings.input_size:
            raise
        (height, width), reason = settings.input_size, str(error).partition("\n")[0][:200]
        raise ValueError(f"--input-size {height} {width}: no model for such images can be made ({reason})") from error
    return model


# The parameters that each choice of --train-only trains, as patterns of their names.
TRAINED = {"all": "", "mixer": r"layers\.\d+\.mixer\.|head\.|pos_embed", "head": r"head\."}


def choose_trained(model: nn.Module, part: str) -> None:
    """Train only one part of the model: all, mixer (with head and position embedding), or head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(re.match(TRAINED[part], name)))


def new_model(settings: Settings) -> VisionMamba:
    """Build the model that settings ask for, with its fusion and new weights."""
    model = build_model(settings, drop_rate=settings.drop, drop_path_rate=settings.drop_path)
    model.set_scan_recompute(settings.scan_recompute)
    model.set_grad_checkpointing(settings.grad_checkpointing)
    with naming_flags({"class_position": "--if_random_cls_token_position"}):
        model.set_random_order(settings.if_random_cls_token_position, settings.if_random_token_rank)
    fuse(model, settings)
    return model


def with_image_size(settings: Any, model: VisionMamba) -> Any:
    """Return the settings with the model's image size."""
    return replace(settings, input_size=model.patch_embed.img_size)
