"""One update of the weights, where loss and gradient are finite: decided on the device, which nothing here waits for.

The exception is an optimizer that can't be told on the device to leave everything as it is: see `step_if`.
"""

import math

import torch
from torch import Tensor, nn

# Where a loss scale below this still gives gradients that are not finite, the scale is not to blame: as fairseq's
# --min-loss-scale.
SMALLEST_SCALE = 1e-4


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses_are_finite: Tensor,
    scaler: torch.amp.GradScaler | None = None,
    clip_grad: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step against the gradient, where it and the losses are finite.

    Args:
        model: Its parameters hold the gradient.
        optimizer: Steps.
        losses_are_finite: On the device, bool [].
        scaler: Has scaled the loss, for fp16.
        clip_grad: Largest norm of the gradient.

    Returns:
        On the device, each []: the gradient's norm before clipping; whether weights changed; whether they didn't only
        because the scale was too large, which is lower now.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
    good = losses_are_finite & norm.isfinite()
    step_if(good, optimizer)
    overscaled = torch.zeros_like(good) if scaler is None else _rescale(scaler, losses_are_finite)
    return norm, good, overscaled


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step, or change nothing, its own state included.

    Fused optimizers (Adam and AdamW here) decide on the device, as GradScaler asks them to. All others are waited for
    once a step: undoing what they did would cost a copy of all weights and averages.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~good).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif good.item():
        optimizer.step()


def _rescale(scaler: torch.amp.GradScaler, losses_are_finite: Tensor) -> Tensor:
    """Let the scaler lower or raise its scale; returns whether it lowered it, and may go on doing so."""
    one = torch.ones_like(losses_are_finite, dtype=torch.float32)
    before = scaler.scale(one)
    scaler.update()
    after = scaler.scale(one)
    scaler.update(torch.where(losses_are_finite, after, before))  # a loss isn't better at another scale
    return (after < before) & (after >= SMALLEST_SCALE)
