"""Build the optimizer, the learning rate schedule and the average of the weights that settings ask for."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from torch import nn

from models_mamba import VisionMamba
from training.settings.failure import check_known
from training.settings.kinds import keyword_arguments
from training.settings.learning import OptimizerSettings, RateSettings
from training.settings.model import ModelSettings
from training.settings.rates import Rates
from training.settings.settings import Settings
from training.step.average import WeightAverage

# Arguments of optimizers that flags of their own give.
WITH_FLAGS = {
    "opt": "--opt",
    "lr": "--lr",
    "weight_decay": "--weight-decay",
    "momentum": "--momentum",
    "eps": "--opt-eps",
    "betas": "--opt-betas",
    "layer_decay": "--layer-decay",
}


def check_optimizer(settings: OptimizerSettings) -> None:
    """Raise ValueError for flags on which timm's optimizers would fail only in their first step."""
    info = get_optimizer_info(settings.opt.lower())
    if info.second_order:
        raise ValueError(f"--opt {settings.opt}: needs gradients of gradients, which training here doesn't make")
    betas = info.num_betas if info.has_betas else 0
    if settings.opt_betas and len(settings.opt_betas) != betas:
        raise ValueError(
            f"--opt-betas: --opt {settings.opt} takes {betas or 'no'} betas, not {len(settings.opt_betas)}"
        )
    for key in keyword_arguments(settings.opt_kwargs):
        if key in WITH_FLAGS:
            raise ValueError(f"--opt-kwargs {key}: is what {WITH_FLAGS[key]} gives")
        check_known("--opt-kwargs", key, _arguments(settings.opt))


def _arguments(name: str) -> set[str]:
    """Return the names of arguments that timm's factory and an optimizer's class take."""
    try:
        takers = create_optimizer_v2, get_optimizer_class(name.lower(), bind_defaults=False)
    except Exception as error:  # it needs a package that isn't there
        raise ValueError(f"--opt {name}: {error}") from error
    parameters = {key for taker in takers for key in inspect.signature(taker).parameters}
    return parameters - {"model_or_params", "params", "kwargs", "args"}


def build_optimizer(settings: Settings, model: VisionMamba, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer that flags ask for; parameters that the model names are spared weight decay."""
    own = {"betas": tuple(settings.opt_betas)} if settings.opt_betas else {}
    if get_optimizer_info(settings.opt.lower()).opt_class in (torch.optim.Adam, torch.optim.AdamW):
        own["fused"] = True  # one pass over the weights instead of one for each term of the update
    own |= keyword_arguments(settings.opt_kwargs)
    create = partial(
        create_optimizer_v2,
        opt=settings.opt,
        lr=lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        eps=settings.opt_eps,
        **own,
    )
    try:
        if settings.opt_kwargs:
            _try_a_step(create, next(model.parameters()).device)
        return create(model, layer_decay=settings.layer_decay)
    except Exception as error:  # each optimizer fails in its own way
        given = " ".join(("", "--opt-kwargs", *settings.opt_kwargs)) if settings.opt_kwargs else ""
        raise ValueError(f"--opt {settings.opt}{given}: {str(error) or type(error).__name__}") from error


def _try_a_step(create: Callable, device: torch.device) -> None:
    """Let an optimizer update a weight of zeros: some values of its arguments fail only in a step."""
    weight = nn.Parameter(torch.zeros(2, 2, device=device))
    weight.grad = torch.zeros_like(weight)
    create([weight]).step()


def build_scheduler(
    settings: RateSettings, optimizer: torch.optim.Optimizer, rates: Rates, updates_per_epoch: int
) -> tuple[Scheduler, int]:
    """Build timm's learning rate schedule, and count its epochs, cooldown included.

    Args:
        settings: The flags of the schedule.
        optimizer: The optimizer whose learning rates it sets.
        rates: The schedule's rates, scaled to the number of images in a step.
        updates_per_epoch: Steps of an epoch if the rate changes with every step, else 0.
    """
    scaled = {"min_lr": rates.min_lr, "warmup_lr": rates.warmup_lr}
    return create_scheduler_v2(optimizer, **scheduler_kwargs(settings) | scaled, updates_per_epoch=updates_per_epoch)


def build_average(settings: ModelSettings, model: VisionMamba) -> WeightAverage | None:
    """Build the moving average of the weights; None if the flags ask for none."""
    if not settings.model_ema:
        return None
    device = torch.device("cpu") if settings.model_ema_force_cpu else None
    return WeightAverage(model, decay=settings.model_ema_decay, device=device)
