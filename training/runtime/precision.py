"""Choose the precision that a run computes in."""

import torch

from training.runtime.distributed import World
from training.settings.run import RunSettings


def autocast_dtype(settings: RunSettings, world: World) -> torch.dtype | None:
    """Return the dtype of mixed precision, None for fp32; by default mixed precision is on for a GPU only."""
    on = world.device.type == "cuda" if settings.amp is None else settings.amp
    return getattr(torch, settings.amp_dtype) if on else None
