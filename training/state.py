"""What training changes: all that a checkpoint must hold to go on from it."""

from dataclasses import dataclass

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn


@dataclass
class TrainingState:
    """The moving parts of a training.

    Attributes:
        model: The model itself, unwrapped.
        ema: Average of its weights, if one is kept.
        optimizer: Updates the model.
        scheduler: Sets the learning rate of each epoch.
        scaler: Scales the loss under fp16.
        epoch: The epoch to train next.
        best_acc1: Best top-1 on the test images so far, in percent.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler | None
    epoch: int = 0
    best_acc1: float = 0.0

    def state_dict(self) -> dict:
        """Tensors and plain data; `model` and `model_ema` are state dicts under the published key."""
        return {
            "model": self.model.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "epoch": self.epoch,
            "best_acc1": self.best_acc1,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint; the model's own weights are loaded before, also for evaluation alone.

        Raises:
            ValueError: The checkpoint holds weights only, or another optimizer's state.
        """
        if "optimizer" not in state:
            raise ValueError(
                "--resume: the checkpoint holds no optimizer: evaluate it with --eval, it can't be continued"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            # A run that kept no average so far starts one from its weights.
            self.ema.module.load_state_dict(state["model_ema"] or state["model"])
        self.epoch = state["epoch"]
        self.best_acc1 = state["best_acc1"]

    def evaluated_models(self) -> list[tuple[str, nn.Module]]:
        """The models to evaluate, each with the prefix of its scores in the log."""
        return [("test", self.model)] + ([("test_ema", self.ema.module)] if self.ema else [])

    def finish_epoch(self, acc1: float) -> None:
        """Count the epoch, with its top-1, and set the learning rate of the next one."""
        self.epoch += 1
        self.best_acc1 = max(self.best_acc1, acc1)
        self.scheduler.step(self.epoch, acc1)
