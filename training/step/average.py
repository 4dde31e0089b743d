"""Keep a moving average of the weights."""

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class WeightAverage(ModelEmaV3):
    """Keep timm's moving average of the weights, warmed up by steps as with its use_warmup.

    Only steps that changed weights count and move the average. Whether a step did is decided on the device, so nothing
    waits for it.

    Attributes:
        steps: How many steps moved the average, float64 [].
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, decay=decay, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, changed: Tensor) -> None:
        """Move the average towards the model's current weights if the last step changed them (changed: bool [])."""
        self.steps += changed
        decay = (1 - self.steps ** (-2 / 3)).clamp(max=self.decay)
        share = torch.where(changed, 1 - decay, 0).float().to(device=self.device)
        for average, weight in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            average.lerp_(weight.to(device=self.device), share)
