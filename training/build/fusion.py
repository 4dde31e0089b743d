"""Build the plan and method of fusion that flags ask for, and put them into a model."""

from functools import partial

import fusion
from fusion.injection import injected_plan
from models_mamba import VisionMamba
from training.settings.failure import naming_flags
from training.settings.model import FusionMethodSettings, FusionPlanSettings, FusionSettings
from training.words import counted

# The flags that give the parameters of fusion.plan, plan_at_cost, parse_plan and Method.
FLAGS = {
    "strategy": "--fusion-strategy",
    "layer": "--fusion-layer",
    "tokens": "--fusion-token",
    "total": "--fusion-total",
    "share": "--fusion-cost",
    "schedule": "--fusion-schedule",
    "text": "--fusion-plan",
} | {name: f"--fusion-{name}" for name in fusion.CHOICES}


def fuse(model: VisionMamba, settings: FusionSettings) -> None:
    """Put the fusion that settings ask for into a model.

    Raises:
        ValueError: Flags contradict one another, or the plan doesn't fit the model.
    """
    method = fusion_method(settings)
    plan = fusion_plan(settings, model, method)
    _check_effect(method, plan)
    try:
        fusion.inject(model, plan, method)
    except ValueError as error:
        raise ValueError(f"{error}{_most(settings, model)}; --fusion-clip fuses as many as a layer can") from None


def fusion_plan(settings: FusionPlanSettings, model: VisionMamba, method: fusion.Method) -> tuple[int, ...]:
    """Build the plan that flags ask for.

    Args:
        settings: The flags of the plan.
        model: The model that it is for, with its head, which is a part of the cost.
        method: How tokens will fuse.

    Returns:
        How many tokens fuse in each layer, with --fusion-clip at most half of the layer's.

    Raises:
        ValueError: Flags contradict one another.
    """
    plan = _unclipped(settings, model, method)
    return fusion.clip(plan, model.patch_embed.num_patches) if settings.fusion_clip else plan


def _unclipped(settings: FusionPlanSettings, model: VisionMamba, method: fusion.Method) -> tuple[int, ...]:
    depth, patches = len(model.layers), model.patch_embed.num_patches
    amounts = {
        "token": settings.fusion_token or None,
        "total": settings.fusion_total,
        "keep": settings.fusion_keep,
        "cost": settings.fusion_cost,
    }
    given = [f"--fusion-{name}" for name, value in amounts.items() if value is not None]
    if settings.fusion_plan is not None:
        others = (
            settings.fusion_strategy != "no",
            settings.fusion_layer is not None,
            settings.fusion_schedule != "constant",
        )
        if given or any(others):
            raise ValueError("--fusion-plan says all: leave strategy, layer, amount and schedule out")
        with naming_flags(FLAGS):
            return fusion.parse_plan(settings.fusion_plan, depth)
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one amount")
    if not given and settings.fusion_strategy in set(fusion.STRATEGIES) - {"no"}:
        raise ValueError(
            f"{settings.fusion_strategy} fuses nothing without --fusion-token (tokens after each layer), "
            "--fusion-total (tokens in all), --fusion-keep (share of the patches to leave) or --fusion-cost (share of "
            "the multiply-adds to leave); --fusion-plan, without a strategy, says all"
        )
    if settings.fusion_cost is not None:
        return _plan_at_cost(settings, model, method)
    if settings.fusion_keep is not None:
        total = fusion.total_to_keep(settings.fusion_keep, patches)
        if settings.fusion_strategy == "no" or not total:
            what = "under --fusion-strategy no" if total else f"of {counted(patches, 'patch', 'patches')}"
            raise ValueError(f"--fusion-keep {settings.fusion_keep:g} fuses nothing {what}")
    else:
        total = settings.fusion_total
    with naming_flags(FLAGS):
        return fusion.plan(
            settings.fusion_strategy,
            depth,
            settings.fusion_layer,
            settings.fusion_token,
            total=total,
            schedule=settings.fusion_schedule,
        )


def _plan_at_cost(settings: FusionPlanSettings, model: VisionMamba, method: fusion.Method) -> tuple[int, ...]:
    """Build the plan of --fusion-cost."""
    if settings.fusion_strategy == "no":
        raise ValueError(f"--fusion-cost {settings.fusion_cost:g} fuses nothing under --fusion-strategy no")
    with naming_flags(FLAGS):
        return fusion.plan_at_cost(
            model,
            settings.fusion_cost,
            settings.fusion_strategy,
            settings.fusion_layer,
            schedule=settings.fusion_schedule,
            method=method,
        )


def _most(settings: FusionPlanSettings, model: VisionMamba) -> str:
    """Return the limit for an error, such as '; the largest --fusion-total here is 12'; '' for --fusion-plan."""
    if settings.fusion_plan is not None:
        return ""
    depth, patches = len(model.layers), model.patch_embed.num_patches
    make_plan = partial(
        fusion.plan, settings.fusion_strategy, depth, settings.fusion_layer, schedule=settings.fusion_schedule
    )
    if settings.fusion_token:
        return f"; the largest --fusion-token here is {fusion.largest(lambda r: make_plan(tokens=r), patches)}"
    total = fusion.largest(lambda n: make_plan(total=n), patches)
    if settings.fusion_total is not None:
        return f"; the largest --fusion-total here is {total}"
    return f"; the least --fusion-keep here is {(patches - total) / patches:.4g}"


def fusion_method(settings: FusionMethodSettings) -> fusion.Method:
    """Build the method of fusion that flags ask for; raise ValueError if flags contradict one another."""
    with naming_flags(FLAGS):
        return fusion.Method(**{name: getattr(settings, f"fusion_{name}") for name in fusion.CHOICES})


def _check_effect(method: fusion.Method, plan: tuple[int, ...]) -> None:
    """Raise ValueError if flags choose a method but no tokens fuse."""
    if method != fusion.Method() and not any(plan):
        changed = next(name for name, choices in fusion.CHOICES.items() if getattr(method, name) != choices[0])
        raise ValueError(f"--fusion-{changed} {getattr(method, changed)} has no effect: no tokens fuse")


def token_counts(model: VisionMamba) -> tuple[int, ...]:
    """Return the lengths of the sequence before layer 0 and after each layer."""
    return fusion.token_counts(injected_plan(model), model.patch_embed.num_patches + model.num_prefix_tokens)
