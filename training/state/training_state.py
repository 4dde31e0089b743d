"""Hold everything that training changes, which is also everything that a checkpoint must store to resume."""

from dataclasses import dataclass, field

import torch
from timm.scheduler import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from models_mamba import VisionMamba
from training.runtime.memory import MB
from training.settings.facts import Facts, recorded
from training.settings.flag import flags, spelling
from training.settings.settings import Settings
from training.state.entries import check_entries
from training.state.optimizer_state import group_names, load_optimizer
from training.step.average import WeightAverage
from training.step.sums import EpochSums

NO_SCORE = -1.0  # the best top-1 before the first evaluation
PLATEAU_COUNTS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


@dataclass
class TrainingState:
    """Hold the parts of a training that change as it runs.

    Attributes:
        model: The model itself, unwrapped.
        ema: Average of its weights, if one is kept.
        opt: timm's name of the optimizer.
        optimizer: Updates the model.
        scheduler: Sets the learning rate of each epoch or each step.
        scaler: Scales the loss under fp16.
        settings: The run's flags and facts as plain data, from which other programs build the same model.
        classes: Names of the classes in the order of the labels, if the data name them.
        images: Number of training images; 0 for a stream.
        updates_per_epoch: Steps of an epoch if the scheduler counts steps, else 0.
        epoch: The epoch to train next, or to continue.
        sums: Running sums of that epoch.
        best_acc1: Best top-1 on the test images so far, in percent; NO_SCORE before the first.
        changed: A line for each setting that differs from the continued run's and would have had to stay.
    """

    model: VisionMamba
    ema: WeightAverage | None
    opt: str
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler | None
    settings: dict
    classes: list[str] | None = None
    images: int = 0
    updates_per_epoch: int = 0
    epoch: int = 0
    sums: EpochSums = field(default_factory=EpochSums)
    best_acc1: float = NO_SCORE
    changed: list[str] = field(default_factory=list)

    def state_dict(self) -> dict:
        """Return a checkpoint's entries, tensors and plain data; the weights are in `model`, as in published files.

        Raises:
            FloatingPointError: The steps not yet read bring the number of bad steps above the limit.
        """
        return {
            "model": self.model.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema else None,
            "ema_steps": int(self.ema.steps) if self.ema else 0,
            "grid_size": self.model.pos_grid,
            "opt": self.opt,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_names": group_names(self.optimizer, self.model),
            "scheduler": plateau_state(self.scheduler) if isinstance(self.scheduler, PlateauLRScheduler) else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "settings": self.settings,
            "classes": self.classes,
            "images": self.images,
            "epoch": self.epoch,
            "sums": self.sums.state_dict(),
            "best_acc1": self.best_acc1,
        }

    def load_state_dict(self, saved: dict) -> None:
        """Continue from a checkpoint. The model's weights are not loaded here: they must have been loaded before.

        Raises:
            ValueError: The checkpoint holds only weights, was trained with another optimizer or grid of patches, or
                has entries of the wrong type.
        """
        optional = ("settings", "classes", "images", "sums", "optimizer_names")
        missing = [name for name in self.state_dict() if name not in saved and name not in optional]
        if missing:
            raise ValueError(f"holds no {', '.join(missing)}: evaluate it with --eval, it can't be continued")
        check_entries(saved)
        if saved["opt"] != self.opt:
            raise ValueError(f"was trained by --opt {saved['opt']} and can't be continued by {self.opt}")
        grid = self.model.pos_grid
        if tuple(saved["grid_size"]) != grid:  # the optimizer's averages would belong to other patches
            raise ValueError(f"was trained on {saved['grid_size']} patches and can't be continued on {grid}")
        try:
            self._load(saved)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"can't be continued ({error!r})") from error

    def _load(self, saved: dict) -> None:
        names = group_names(self.optimizer, self.model)
        load_optimizer(self.optimizer, saved["optimizer"], names, saved.get("optimizer_names"))
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            # A run that kept no average so far starts it from its weights.
            self.ema.module.load_state_dict(saved["model_ema"] or saved["model"])
            self.ema.steps.fill_(saved["ema_steps"])
        self.epoch, self.best_acc1 = saved["epoch"], saved["best_acc1"]
        self.sums = EpochSums(**saved.get("sums", {}))
        if isinstance(self.scheduler, PlateauLRScheduler) and saved["scheduler"]:
            load_plateau(self.scheduler, saved["scheduler"])
        else:
            start_schedule(self.scheduler, self.epoch)

    def optimizer_mb(self) -> float:
        """Return the size of the optimizer's state in MB of 2**20 bytes."""
        entries = [entry for state in self.optimizer.state.values() for entry in state.values()]
        return sum(entry.nbytes for entry in entries if isinstance(entry, torch.Tensor)) / MB

    def set_rate(self) -> None:
        """Set the learning rate of the next step, if the scheduler counts steps."""
        self.scheduler.step_update(self.epoch * self.updates_per_epoch + self.sums.steps)

    def evaluated_models(self) -> list[tuple[str, nn.Module]]:
        """Return the models to evaluate, each with its prefix in the log; an average on another device is left out."""
        device = next(self.model.parameters()).device
        averages = [("test_ema", self.ema.module)] if self.ema and self.ema.device in (None, device) else []
        return [("test", self.model), *averages]

    def finish_epoch(self, acc1: float | None) -> bool:
        """Count the epoch, note its top-1 in percent if it has one, and set the learning rate of the next epoch.

        Returns:
            Whether it has the best top-1 so far. Of equal ones, the earlier is the better.
        """
        improved = acc1 is not None and acc1 > self.best_acc1
        self.best_acc1 = acc1 if improved else self.best_acc1
        self.epoch += 1
        self.sums = EpochSums()
        self.scheduler.step(self.epoch, acc1)
        return improved


def changed_settings(saved: dict, now: dict) -> list[str]:
    """Return a line for each setting that a resumed run can't change but that differs from the checkpoint's."""
    labels = {each.name: spelling(each) for each, _ in flags(Settings)} | {
        each.name: told.help for each, told in flags(Facts)
    }
    return [
        f"{labels[name]} was {saved[name]} and is {now[name]}"
        for name in recorded(fixed=True)
        if name in saved and saved[name] != now[name]
    ]


def changed_images(saved: dict, now: int) -> list[str]:
    """Return a line if the number of training images differs from the checkpoint's; their path may differ."""
    before = saved.get("images") or now
    return [f"the number of training images was {before} and is {now}"] if before != now else []


def start_schedule(scheduler: Scheduler, epoch: int) -> None:
    """Set the learning rate of the epoch at which a run starts."""
    if not isinstance(scheduler, PlateauLRScheduler):
        scheduler.step(epoch)
    elif scheduler.warmup_t:  # it reaches the full rate only by the last step of the warm-up
        scheduler.step(min(epoch, scheduler.warmup_t))


def plateau_state(scheduler: PlateauLRScheduler) -> dict:
    """Return the state of a plateau schedule, which, unlike all other schedules, does not follow from the epoch alone.

    Its entries: counts (best top-1, epochs since then and the like), and of each group lr, the rate, base_lr, the rate
    to begin with, and restore_lr, the rate without noise, or None.
    """
    return {
        "counts": {name: getattr(scheduler.lr_scheduler, name) for name in PLATEAU_COUNTS},
        "restore_lr": scheduler.restore_lr,
        "base_lr": list(scheduler.base_values),
        "lr": [group["lr"] for group in scheduler.optimizer.param_groups],
    }


def load_plateau(scheduler: PlateauLRScheduler, saved: dict) -> None:
    """Restore what plateau_state returned; patience, factor and minimum rate stay as given now, and so does --lr.

    Raises:
        ValueError: The number of the optimizer's groups differs from that of the saved rates.
    """
    if len(saved["lr"]) != len(scheduler.optimizer.param_groups):
        raise ValueError("under --sched plateau, --weight-decay and --layer-decay must group the weights as before")
    for name in PLATEAU_COUNTS:
        setattr(scheduler.lr_scheduler, name, saved["counts"][name])
    before = saved.get("base_lr", scheduler.base_values)  # older checkpoints have none
    factors = [now / then for now, then in zip(scheduler.base_values, before, strict=True)]

    def rescaled(rates: list[float]) -> list[float]:
        return [rate * factor for rate, factor in zip(rates, factors, strict=True)]

    scheduler.restore_lr = saved["restore_lr"] and rescaled(saved["restore_lr"])
    for group, rate in zip(scheduler.optimizer.param_groups, rescaled(saved["lr"]), strict=True):
        group["lr"] = rate
