"""Count the multiply-adds of a forward pass from the plan's token counts."""

import math

from torch import nn

from fusion.injection import check_plan, injected_plan


def cost(model: nn.Module) -> dict[str, int]:
    """Count the multiply-adds of one image in a forward pass, by part of the model.

    With L tokens in a layer (by the plan, so L differs between layers), width D, inner channels E, states N, taps W,
    rank R, and one or two directions:

        products      L (2 D E + E D) for in_proj and out_proj; each direction L (E (R + 2 N) + R E)
        convolution   each direction L E W
        scan          each direction L E (4 N + 3): dt A, decay h, dt u B and C h for each state; dt u, D u, the gate
        matching      ceil(P / 2) floor(P / 2) D for the P patch tokens of a layer that compares them
        embedding     patches times the patch convolution
        head          D times the classes, for every token that it reads

    Exponentials and other activations, norms, sums and the averaging of fused tokens are not counted. Vim-Ti at 224
    pixels without fusion comes to 1.5 G, as in the literature.

    Raises:
        ValueError: the model's images have become too small for the plan that was injected.
    """
    plan = injected_plan(model)
    check_plan(plan, len(plan), model.patch_embed.num_patches)
    parts = dict.fromkeys(("embedding", "products", "convolution", "scan", "matching", "head"), 0)
    weight = model.patch_embed.proj.weight
    parts["embedding"] = model.patch_embed.num_patches * weight.numel()
    length = model.pos_embed.shape[1]
    for block, r in zip(model.layers, plan, strict=True):
        _add_mixer(parts, block.mixer, length)
        if r:
            patches = length - model.num_prefix_tokens
            if block.fusion.method.match == "similar":
                parts["matching"] += math.ceil(patches / 2) * (patches // 2) * model.embed_dim
            length -= r
    read = {"max": length - model.num_prefix_tokens, "": length}.get(model.global_pool, 1)
    parts["head"] = read * model.embed_dim * model.num_classes
    return parts


def flops(model: nn.Module) -> int:
    """Return the multiply-adds of one image in a forward pass; `cost` says what is counted."""
    return sum(cost(model).values())


def _add_mixer(parts: dict[str, int], mixer: nn.Module, length: int) -> None:
    parts["products"] += length * (mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel())
    for direction in (mixer.forward_ssm, mixer.backward_ssm):
        if direction is None:
            continue
        channels, states = direction.A_log.shape
        parts["products"] += length * (direction.x_proj.weight.numel() + direction.dt_proj.weight.numel())
        parts["convolution"] += length * direction.conv1d.weight.numel()
        parts["scan"] += length * channels * (4 * states + 3)
