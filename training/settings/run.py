"""Declare the flags of a run: what it saves, where it starts, what it computes on, with how many processes."""

from dataclasses import dataclass
from typing import ClassVar

from ssm import BACKENDS
from training.settings.flag import flag
from training.settings.kinds import count, number, path, positive


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Choose what a run saves, where it starts, and what it computes on."""

    TITLE: ClassVar[str | None] = "run"

    output_dir: str = flag(
        "",
        "directory for checkpoints, log.txt and TensorBoard, or for --eval's scores.json; without it nothing is kept",
        path,
        spelling="--output_dir",
        metavar="DIR",
        place=True,
    )
    log_images: int = flag(
        0,
        "every N epochs, show in TensorBoard training images, what fuses in a test image, and how alike tokens are",
        count,
        metavar="N",
        compared=False,
    )
    log_wandb: bool = flag(
        False, "send to Weights & Biases what TensorBoard gets; needs the package wandb", compared=False
    )
    wandb_project: str = flag("vision-mamba", "project in Weights & Biases", metavar="NAME", compared=False)
    resume: str = flag(
        "", "continue from this checkpoint, or evaluate it with --eval", path, metavar="FILE", place=True
    )
    finetune: str = flag(
        "",
        "start from the weights in this file or hf_hub:OWNER/REPOSITORY/FILE, ours or published; a head that lacks a "
        "class is replaced by a new one",
        path,
        metavar="FILE",
        file=True,
    )
    pretrained: bool = flag(
        False, "start from the model's published weights on the Hugging Face hub, or evaluate them with --eval"
    )
    finetune_ema: bool = flag(
        False, "start from the average of the weights (model_ema) in the file of --finetune or --pretrained"
    )
    auto_resume: bool = flag(
        False,
        "continue from the latest checkpoint in --output_dir, or start if there is none",
        compared=False,
        repeated=False,
    )
    resume_anyway: bool = flag(
        False,
        "continue even if batch size, plan or the like differ from the checkpoint's run",
        compared=False,
        repeated=False,
    )
    val_interval: int = flag(
        1, "evaluate after every N-th epoch only, and after the last one", positive, metavar="N", compared=False
    )
    checkpoint_hist: int = flag(
        0, "keep the checkpoints of the N best epochs too, as checkpoint-EPOCH.pth", count, metavar="N", compared=False
    )
    save_steps: int = flag(0, "also save every N steps, not only after each epoch", count, metavar="N", compared=False)
    start_epoch: int = flag(
        0,
        "number of the first epoch, from 0; a checkpoint's own number overrides it",
        count,
        spelling="--start_epoch",
        metavar="N",
        compared=False,
    )
    eval: bool = flag(
        False, "evaluate the checkpoint of --resume; flags override the model, data and fusion of its run"
    )
    real_labels: str = flag(
        "",
        "with --eval on ImageNet's validation images, also score by this file of reassessed labels (ReaL)",
        path,
        metavar="FILE",
        place=True,
    )
    check: bool = flag(
        False, "try the run out: build everything, train one batch, write and read a checkpoint, and stop"
    )
    seed: int = flag(
        0,
        "seed of weights, order of images and augmentation",
        number(int, 0, 2**32 - 1),
        metavar="N",
        fixed=True,
        compared=False,
        shown=True,
    )
    deterministic: bool = flag(False, "use only algorithms that give the same bits every time; may be slower")
    device: str | None = flag(
        None, "cpu, cuda or cuda:N; by default a GPU if there is one", metavar="NAME", compared=False
    )
    amp: bool | None = flag(
        None,
        "mixed precision; by default on a GPU only",
        spelling="--if_amp",
        off=("--no_amp", "compute everything in fp32"),
        cost=True,
    )
    amp_dtype: str = flag("bfloat16", "dtype of mixed precision", choices=("bfloat16", "float16"), cost=True)
    scan_backend: str = flag(
        "auto",
        "implementation of the scan: plain PyTorch (reference), C++ (cpu), Triton, or mamba-ssm (cuda); "
        "python -m ssm shows which run here",
        choices=BACKENDS,
        cost=True,
    )
    compile: bool = flag(
        False,
        "compile the model with torch.compile, which takes a minute or more; not with mamba-ssm or reference",
        cost=True,
    )
    scan_recompute: bool = flag(
        False,
        "recompute part of the scan's inputs in the backward pass; about 40 %% less memory with the C++ scan",
        cost=True,
    )


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Choose how many processes train together, and how they meet."""

    TITLE: ClassVar[str | None] = "several processes"

    dist_eval: bool = flag(False, "evaluate a part of the test images on each process, instead of all on every one")
    world_size: int = flag(
        1,
        "processes to start on this machine; a launcher's setting overrides it",
        positive,
        spelling="--world_size",
        metavar="N",
        compared=False,
    )
    dist_url: str = flag(
        "env://",
        "tcp://HOST:PORT at which processes meet; a launcher's setting overrides it",
        spelling="--dist_url",
        metavar="URL",
        compared=False,
    )
    local_rank: int | None = flag(
        None, "passed by old launchers; not used", int, metavar="N", compared=False, repeated=False
    )
