"""A moving average of the weights."""

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class WeightAverage(ModelEmaV3):
    """timm's moving average of weights, with the warm-up by steps that it has under use_warmup.

    Only steps that changed weights count and move it; it learns on the device whether one did, so nothing waits.

    Attributes:
        steps: How many moved it, float64 [].
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, decay=decay, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, changed: Tensor) -> None:
        """Move towards the model's weights of now, if the last step changed them (bool [])."""
        self.steps += changed
        decay = (1 - self.steps ** (-2 / 3)).clamp(max=self.decay)
        share = torch.where(changed, 1 - decay, 0).float().to(device=self.device)
        for average, weight in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            average.lerp_(weight.to(device=self.device), share)
