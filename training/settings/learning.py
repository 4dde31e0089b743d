"""Declare the flags of the loss, the optimizer and the learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from training.settings.flag import flag
from training.settings.kinds import above_zero, amount, count, key_value, number, path, positive, share


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Choose the loss."""

    TITLE: ClassVar[str | None] = "loss"

    bce_loss: bool = flag(
        False,
        "binary cross entropy, with every class mixed into an image as a full label (DeiT III); needs --smoothing 0",
    )
    cosub: bool = flag(
        False,
        "train two sub-models drawn by drop path, which also teach each other (cosub), by binary cross entropy",
        negatable=True,
    )
    distillation_type: str = flag(
        "none",
        "distillation from a teacher's probabilities (soft) or from its most likely class (hard)",
        choices=("none", "soft", "hard"),
    )
    teacher_model: str = flag("", "the teacher: a timm model, or one of models_mamba.py without fusion", metavar="NAME")
    teacher_path: str = flag("", "checkpoint of the teacher", path, metavar="FILE", file=True)
    distillation_alpha: float = flag(0.5, "distillation's share of the loss", share, metavar="A")
    distillation_tau: float = flag(1.0, "temperature of soft distillation", above_zero, metavar="T")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Choose how weights are updated."""

    TITLE: ClassVar[str | None] = "optimizer"

    batch_size: int = flag(64, "images in a batch of each process", positive, metavar="N", fixed=True, cost=True)
    grad_accum_steps: int = flag(
        1,
        "batches whose gradients are accumulated for one step of the optimizer",
        positive,
        metavar="N",
        fixed=True,
        cost=True,
    )
    opt: str = flag("adamw", "a timm optimizer; all but adam and adamw wait for a GPU at every step", metavar="NAME")
    opt_eps: float = flag(1e-08, "the optimizer's epsilon", above_zero, metavar="E")
    opt_betas: Sequence[float] | None = flag(
        None, "the optimizer's betas; by default its own", share, metavar="B", nargs="+"
    )
    opt_kwargs: Sequence[str] | None = flag(
        None,
        "arguments of the optimizer that have no flag: amsgrad=True ...",
        key_value,
        metavar="KEY=VALUE",
        nargs="+",
        fixed=True,
    )
    clip_grad: float | None = flag(
        None, "clip the gradient to this norm; by default no clipping", above_zero, metavar="NORM"
    )
    max_bad_steps: int = flag(
        0,
        "steps of an epoch that may be skipped because a loss or gradient isn't finite, before training stops",
        count,
        metavar="N",
    )
    if_continue_inf: bool = flag(
        False, "skip batches whose loss is not finite, however many", spelling="--if_continue_inf"
    )
    if_nan2num: bool = flag(False, "count a loss that is not finite as 0, and skip its step", spelling="--if_nan2num")
    momentum: float = flag(0.9, "momentum, for optimizers that have one", share, metavar="M")
    weight_decay: float = flag(
        0.05, "weight decay, except of norms, biases, embeddings, A_log and D", amount, metavar="W", shown=True
    )

    @property
    def step_size(self) -> int:
        """Return the number of images in one step of one process."""
        return self.batch_size * self.grad_accum_steps


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """Choose the learning rate and its schedule."""

    TITLE: ClassVar[str | None] = "learning rate"

    epochs: int = flag(300, "epochs of the schedule", positive, metavar="N", cost=True, shown=True)
    lr: float = flag(
        0.0005,
        "learning rate for 512 images in a step of all processes; scaled linearly to the actual number",
        above_zero,
        metavar="LR",
    )
    unscale_lr: bool = flag(False, "don't scale --lr, --warmup-lr and --min-lr", negatable=True)
    layer_decay: float | None = flag(
        None,
        "layer-wise decay: each layer's rate is F times that of the next layer",
        number(float, 0, 1, above=True),
        metavar="F",
    )
    sched: str = flag(
        "cosine",
        "schedule of the learning rate: cosine, tanh, step, plateau, poly or constant",
        choices=("cosine", "tanh", "step", "plateau", "poly", "constant"),
        metavar="NAME",
    )
    sched_on_updates: bool = flag(
        False,
        "set the rate at every step instead of every epoch, so that short runs warm up and decay smoothly",
        negatable=True,
    )
    warmup_epochs: int = flag(5, "epochs of linear warm-up, counted among --epochs", count, metavar="N")
    warmup_lr: float = flag(1e-06, "rate at which the warm-up starts; scaled like --lr", amount, metavar="LR")
    min_lr: float = flag(1e-05, "rate at which the schedule ends; scaled like --lr", amount, metavar="LR")
    decay_epochs: float = flag(30.0, "step: epochs between decays", above_zero, metavar="N")
    decay_rate: float = flag(0.1, "step and plateau: factor of a decay; poly: its power", above_zero, metavar="R")
    patience_epochs: int = flag(10, "plateau: evaluations without a better top-1 before a decay", count, metavar="N")
    cooldown_epochs: int = flag(
        0, "cosine, tanh and poly: epochs at the lowest rate after the schedule", count, metavar="N"
    )
    lr_noise: Sequence[float] | None = flag(
        None,
        "add noise to the rate from this share of the schedule, and until the second if given",
        share,
        metavar="PART",
        nargs="+",
    )
    lr_noise_pct: float = flag(
        0.67, "largest noise, as a share of the rate", number(float, 0, 1, above=True), metavar="P"
    )
    lr_noise_std: float = flag(1.0, "standard deviation of the noise", amount, metavar="S")
