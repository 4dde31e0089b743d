"""Count the multiply-adds of a forward pass from the plan's token counts, and make the plan for a share of them."""

import math
from collections.abc import Sequence

from torch import nn

from fusion import plans
from fusion.injection import check_plan, injected_method, injected_plan
from fusion.method import Method


def cost(model: nn.Module, plan: Sequence[int] | None = None, method: Method | None = None) -> dict[str, int]:
    """Count the multiply-adds of one image in a forward pass, by part of the model.

    Args:
        model: as for `inject`.
        plan: tokens to fuse after each layer; None for the injected plan.
        method: how they fuse; None for the injected method.

    With L tokens in a layer (by the plan, so L differs between layers), width D, inner channels E, states N, taps W,
    rank R, and one or two directions:

        products      L (2 D E + E D) for in_proj and out_proj; each direction L (E (R + 2 N) + R E)
        convolution   each direction L E W
        scan          each direction L E (4 N + 3): dt A, decay h, dt u B and C h for each state; dt u, D u, the gate
        matching      ceil(P / 2) floor(P / 2) W for the P patch tokens of a layer that compares them by W numbers
        embedding     patches times the patch convolution
        head          D times the classes, for every token that it reads

    Exponentials and other activations, norms, sums and the averaging of fused tokens are not counted. Vim-Ti at 224
    pixels without fusion comes to 1.5 G, as in the literature.

    Raises:
        ValueError: the plan doesn't fit the model; an injected one, because the images have become smaller.
    """
    plan = injected_plan(model) if plan is None else plan
    method = injected_method(model) if method is None else method
    check_plan(plan, len(model.layers), model.patch_embed.num_patches)
    parts = dict.fromkeys(("embedding", "products", "convolution", "scan", "matching", "head"), 0)
    weight = model.patch_embed.proj.weight
    parts["embedding"] = model.patch_embed.num_patches * weight.numel()
    length = model.patch_embed.num_patches + model.num_prefix_tokens
    for block, r in zip(model.layers, plan, strict=True):
        _add_mixer(parts, block.mixer, length)
        if r:
            patches = length - model.num_prefix_tokens
            if method.match != "random":
                parts["matching"] += math.ceil(patches / 2) * (patches // 2) * _width(block.mixer, method.metric)
            length -= r
    read = {"max": length - model.num_prefix_tokens, "": length}.get(model.global_pool, 1)
    parts["head"] = read * model.embed_dim * model.num_classes
    return parts


def flops(model: nn.Module, plan: Sequence[int] | None = None, method: Method | None = None) -> int:
    """Return the multiply-adds of one image in a forward pass; `cost` says what is counted."""
    return sum(cost(model, plan, method).values())


def plan_at_cost(
    model: nn.Module,
    share: float,
    strategy: str,
    layer: int | None = None,
    *,
    schedule: str = "constant",
    method: Method = Method(),
) -> tuple[int, ...]:
    """Make the plan of a strategy that leaves the share of the model's multiply-adds nearest to the one asked for.

    Args:
        model: as for `inject`; what it fuses now makes no difference.
        share: of the multiply-adds without fusion, above 0 and below 1; matching counts as a part of them.
        strategy: as for `plan`, and so are layer and schedule.
        method: how tokens will fuse, because matching costs more by one method than by another.

    Raises:
        ValueError: the strategy leaves more than this share whatever it fuses, or so little has to fuse that no plan is
            nearer to it than none; or `plan` can't make a plan of these arguments.
    """
    if math.isnan(share):
        raise ValueError("`share` must be a number, not nan")
    depth, patches = len(model.layers), model.patch_embed.num_patches
    whole = flops(model, (0,) * depth)

    def make_plan(total: int) -> tuple[int, ...]:
        return plans.plan(strategy, depth, layer, total=total, schedule=schedule)

    candidates = map(make_plan, plans.amounts_that_fit(make_plan, patches))
    shares = {plan: flops(model, plan, method) / whole for plan in candidates}
    least = min(shares.values(), default=1.0)
    if share < least:
        # Rounded up, so that the share named is one that can be had.
        raise ValueError(f"`share` {share:g} is less than {strategy} can reach: {math.ceil(least * 1e4) / 1e4:g}")
    nearest = min(shares, key=lambda plan: abs(shares[plan] - share))
    if abs(1 - share) <= abs(shares[nearest] - share):
        most = max((left for left in shares.values() if left < 1), default=least)
        raise ValueError(f"`share` {share:g} fuses nothing; the largest that {strategy} leaves is {most:.4g}")
    return nearest


def _directions(mixer: nn.Module) -> list[nn.Module]:
    return [direction for direction in (mixer.forward_ssm, mixer.backward_ssm) if direction is not None]


def _width(mixer: nn.Module, metric: str) -> int:
    """Return how many numbers of a token are compared."""
    both, (channels, states) = len(_directions(mixer)), mixer.forward_ssm.A_log.shape
    widths = {"delta": both * channels, "B": both * states, "C": both * states, "scan": channels}
    return widths.get(metric, mixer.in_proj.in_features)


def _add_mixer(parts: dict[str, int], mixer: nn.Module, length: int) -> None:
    parts["products"] += length * (mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel())
    for direction in _directions(mixer):
        channels, states = direction.A_log.shape
        parts["products"] += length * (direction.x_proj.weight.numel() + direction.dt_proj.weight.numel())
        parts["convolution"] += length * direction.conv1d.weight.numel()
        parts["scan"] += length * channels * (4 * states + 3)
