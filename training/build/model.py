"""Build the model that settings ask for."""

import inspect
import re
from dataclasses import replace
from typing import Any

import torch
from timm.models import create_model, list_models
from torch import nn

from models_mamba import VisionMamba
from training.build.fusion import fuse
from training.settings.failure import check_known, naming_flags
from training.settings.kinds import keyword_arguments
from training.settings.model import ModelChoice
from training.settings.settings import Settings

# Arguments of VisionMamba that flags of their own give.
WITH_FLAGS = {
    "img_size": "--input-size",
    "in_chans": "--in-chans",
    "num_classes": "--nb-classes",
    "drop_rate": "--drop",
    "drop_path_rate": "--drop-path",
}


def check_model(settings: ModelChoice) -> None:
    """Raise ValueError, with the nearest names, if there is no such model or no argument of it of such a name."""
    check_known("--model", settings.model, list_models(module="models_mamba"))
    for key in keyword_arguments(settings.model_kwargs):
        if key in WITH_FLAGS:
            raise ValueError(f"--model-kwargs {key}: is what {WITH_FLAGS[key]} gives")
        check_known("--model-kwargs", key, inspect.signature(VisionMamba).parameters)


def build_model(settings: ModelChoice, **options) -> VisionMamba:
    """Build a model without fusion.

    Args:
        settings: The model's name and its images. If they give no image size, the model's default applies; read it
            from model.patch_embed.img_size.
        options: Further arguments of VisionMamba.

    Raises:
        ValueError: There is no such model, or it can't take images of this size.
    """
    check_model(settings)
    given = keyword_arguments(settings.model_kwargs)
    if settings.input_size:
        options["img_size"] = settings.input_size
    try:
        return create_model(settings.model, in_chans=settings.in_chans, **options, **given)
    except Exception as error:  # a size that is too large, and each argument, fails in its own way
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        if given:
            raise ValueError(f"--model-kwargs {' '.join(settings.model_kwargs)}: {reason}") from error
        if not settings.input_size or isinstance(error, ValueError):
            raise
        height, width = settings.input_size
        raise ValueError(f"--input-size {height} {width}: no model for such images can be made ({reason})") from error


def check_scanned(model: VisionMamba, settings: ModelChoice) -> None:
    """Raise ValueError if --model-kwargs ask for what the scan here can't compute, or for a model without logits."""
    if not settings.model_kwargs:
        return
    image = torch.zeros(1, settings.in_chans, *model.patch_embed.img_size, device=model.pos_embed.device)
    try:
        with torch.no_grad():
            logits = model.eval()(image)
        if logits.ndim != 2:
            raise RuntimeError(f"the model's output, of shape {tuple(logits.shape)}, is no row of logits")
    except RuntimeError as error:
        raise ValueError(f"--model-kwargs {' '.join(settings.model_kwargs)}: {error}") from error


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
