"""Update the weights if loss and gradient are finite, which is decided on the device without waiting for it.

Only optimizers that can't skip a step on the device are waited for: see `step_if`.
"""

import math

import torch
from torch import Tensor, nn

# If a loss scale below this still gives gradients that are not finite, the scale is not to blame; as fairseq's
# --min-loss-scale.
SMALLEST_SCALE = 1e-4


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses_are_finite: Tensor,
    scaler: torch.amp.GradScaler | None = None,
    clip_grad: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step against the gradient if it and the losses are finite.

    Args:
        model: Its parameters hold the gradient.
        optimizer: Updates these parameters.
        losses_are_finite: On the device, bool [].
        scaler: The scaler that scaled the loss, for fp16; None if it isn't scaled.
        clip_grad: Largest norm of the gradient; no clipping if None.

    Returns:
        On the device, each []: the gradient's norm before clipping; whether weights changed; whether they stayed only
        because the loss scale was too large, which is lower now.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
    good = losses_are_finite & norm.isfinite()
    step_if(good, optimizer)
    overscaled = torch.zeros_like(good) if scaler is None else _rescale(scaler, losses_are_finite)
    return norm, good, overscaled


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step if `good`, a bool [] on the device; otherwise leave weights and its state unchanged.

    Fused Adam and AdamW decide on the device, through the attributes that GradScaler sets. For all other optimizers,
    `good` is waited for once a step: undoing a step would need a copy of all weights and averages, and fused SGD, if
    its first step is skipped, goes on with a momentum that it never wrote.
    """
    if isinstance(optimizer, torch.optim.Adam) and getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~good).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif good.item():
        optimizer.step()


def _rescale(scaler: torch.amp.GradScaler, losses_are_finite: Tensor) -> Tensor:
    """Let the scaler lower or raise its scale; return whether it lowered it and the scale is not yet too small."""
    one = torch.ones_like(losses_are_finite, dtype=torch.float32)
    before = scaler.scale(one)
    scaler.update()
    after = scaler.scale(one)
    scaler.update(torch.where(losses_are_finite, after, before))  # another scale doesn't make a loss finite
    return (after < before) & (after >= SMALLEST_SCALE)
