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
        "where checkpoints, log.txt and TensorBoard files go, or --eval's scores.json; without it nothing is kept",
        path,
        spelling="--output_dir",
        metavar="DIR",
        place=True,
    )
    log_images: int = flag(
        0,
        "every N epochs show in TensorBoard training images, what fuses in a test image, and how alike tokens are",
        count,
        metavar="N",
        compared=False,
    )
    log_wandb: bool = flag(
        False, "give Weights & Biases what TensorBoard gets; needs the package wandb", compared=False
    )
    wandb_project: str = flag("vision-mamba", "its project", metavar="NAME", compared=False)
    resume: str = flag("", "continue from this checkpoint, or --eval it", path, metavar="FILE", place=True)
    finetune: str = flag(
        "",
        "start from these weights, ours or published, of a file or of hf_hub:OWNER/REPOSITORY/FILE; where the head "
        "lacks a class, a new head takes its place",
        path,
        metavar="FILE",
        file=True,
    )
    pretrained: bool = flag(
        False, "start from the model's published weights, of the Hugging Face hub; with --eval, evaluate them"
    )
    finetune_ema: bool = flag(False, "start from the file's average of the weights (model_ema) instead")
    auto_resume: bool = flag(
        False, "go on with what --output_dir holds, from its furthest checkpoint", compared=False, repeated=False
    )
    resume_anyway: bool = flag(
        False, "continue although batch size, plan or the like are others now", compared=False, repeated=False
    )
    val_interval: int = flag(
        1, "evaluate after every N-th epoch only, and after the last one", positive, metavar="N", compared=False
    )
    checkpoint_hist: int = flag(
        0, "keep the checkpoints of the N best epochs too, as checkpoint-EPOCH.pth", count, metavar="N", compared=False
    )
    save_steps: int = flag(0, "save every N steps too, not only after each epoch", count, metavar="N", compared=False)
    start_epoch: int = flag(
        0,
        "first epoch, counted from 0, unless a checkpoint says it",
        count,
        spelling="--start_epoch",
        metavar="N",
        compared=False,
    )
    eval: bool = flag(
        False, "evaluate the checkpoint of --resume, with its model, data and fusion unless flags say others"
    )
    real_labels: str = flag(
        "",
        "with --eval on ImageNet's validation images, score by this file of reassessed labels (ReaL) too",
        path,
        metavar="FILE",
        place=True,
    )
    check: bool = flag(
        False, "build everything, train one batch, write and read a checkpoint, say what was found, and stop"
    )
    seed: int = flag(
        0,
        "what weights, order of images and augmentation are drawn by",
        number(int, 0, 2**32 - 1),
        metavar="N",
        fixed=True,
        compared=False,
        shown=True,
    )
    deterministic: bool = flag(False, "only algorithms that give the same bits every time, if slower")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME", compared=False)
    amp: bool | None = flag(
        None,
        "mixed precision; by default on a GPU only",
        spelling="--if_amp",
        off=("--no_amp", "fp32 throughout"),
        cost=True,
    )
    amp_dtype: str = flag("bfloat16", "what mixed precision computes in", choices=("bfloat16", "float16"), cost=True)
    scan_backend: str = flag(
        "auto",
        "what scans: plain PyTorch, C++, Triton, or mamba-ssm; python -m ssm says what there is",
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
        "make what the scan needs again in the backward pass; with the C++ scan about 40 %% less memory",
        cost=True,
    )


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Choose how many processes train together, and how they meet."""

    TITLE: ClassVar[str | None] = "several processes"

    dist_eval: bool = flag(False, "share the test images out instead of every process evaluating all")
    world_size: int = flag(
        1,
        "processes to start on this machine; a launcher's own setting goes first",
        positive,
        spelling="--world_size",
        metavar="N",
        compared=False,
    )
    dist_url: str = flag(
        "env://",
        "tcp://HOST:PORT where they meet; a launcher's own setting goes first",
        spelling="--dist_url",
        metavar="URL",
        compared=False,
    )
    local_rank: int | None = flag(
        None, "passed by old launchers; not used", int, metavar="N", compared=False, repeated=False
    )
