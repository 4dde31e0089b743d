"""What a run prints: one screen before training, one line an epoch."""

import argparse
import platform
import subprocess
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import Dataset

import ssm
from fusion import CHOICES, format_counts
from training.data.loaders import usable_workers
from training.records.pace import seconds
from training.runtime.distributed import World
from training.runtime.progress import length
from training.settings.rates import FALLING, IMAGES, scaled_rates
from training.words import clock, counted

FEW_EPOCHS = 50  # with fewer, DeiT's recipe hardly learns from new weights


def print_overview(
    args: argparse.Namespace,
    world: World,
    model: nn.Module,
    autocast: torch.dtype | None,
    train_set: Dataset | None,
    test_set: Dataset,
    place: str = "",
) -> None:
    """Say, on the main process, what is about to run, and from what place on; without a train_set an evaluation."""
    if not world.is_main:
        return
    height, width = args.input_size
    grey = ", grey" if args.in_chans == 1 else ""
    parameters = sum(p.numel() for p in model.parameters())
    scan = ssm.pick(world.device.type)
    images = f"{_count(test_set)} test image{'' if length(test_set) == 1 else 's'}"
    if train_set is not None:
        images = f"{_count(train_set)} training and {images}"
    rows = [
        ("model", f"{args.model}, {parameters:,} parameters, {height} x {width} pixels{grey}"),
        ("weights", args.weights + _start(args, place)),
        (
            "data",
            f"{args.data_set}, {images}, {counted(args.nb_classes, 'class', 'classes')}, {_workers(args.num_workers)}",
        ),
        ("device", f"{device_name(world.device)}, {_precision(autocast)}"),
        ("scan", f"{scan.name} backend ({scan.reason})"),
        ("fusion", f"{_strategy(args)}; tokens before layer 0 and after each layer:"),
        ("", format_counts(args.token_counts)),
        ("cost", f"{args.flops / 1e6:,.0f} million multiply-adds an image, forward"),
    ]
    if not args.eval:
        accumulated = f" x {args.grad_accum_steps} accumulated" if args.grad_accum_steps > 1 else ""
        warming = ", all warm-up" if args.warmup_epochs >= args.last_epoch else ""
        rule = "" if args.unscale_lr else f" = {args.lr:g} x {args.global_batch} / {IMAGES}"
        falling = f" to {scaled_rates(args, args.global_batch).min_lr:.4g}" if args.sched in FALLING else ""
        rows += [
            ("recipe", _recipe(args)),
            (
                "batch",
                f"{args.batch_size} x {counted(world.size, 'process', 'processes')}{accumulated} = {args.global_batch}",
            ),
            (
                "optimizer",
                f"{args.opt}, learning rate {args.scaled_lr:.4g}{rule}, {args.sched}{falling}, "
                f"{counted(args.last_epoch, 'epoch')}{warming}",
            ),
            ("output", args.output_dir or "nothing is saved; --output_dir DIR keeps log and checkpoints"),
        ]
    for label, text in rows:
        print(f"{label:<11}{text}")
    print(flush=True)


def _start(args: argparse.Namespace, place: str) -> str:
    if args.resume:
        return place and f", goes on at {place}"
    return f", no checkpoint in {args.output_dir} yet" if args.auto_resume else ""


def _count(dataset: Dataset) -> str:
    images = length(dataset)
    return "streamed" if images is None else f"{images:,}"


def _workers(wanted: int) -> str:
    started = usable_workers(wanted)
    lowered = f" (--num_workers {wanted} lowered to the cores there are)" if started < wanted else ""
    return f"{counted(started, 'loading process', 'loading processes')}{lowered}"


def device_name(device: torch.device) -> str:
    """The device and what it is, for measurements to name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_cpu_model()}, {counted(torch.get_num_threads(), 'thread')})"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _precision(autocast: torch.dtype | None) -> str:
    return f"mixed precision in {str(autocast).removeprefix('torch.')}" if autocast else "fp32"


def _recipe(args: argparse.Namespace) -> str:
    if args.recipe != "deit":
        return f"{args.recipe}, as in recipes/{args.recipe}.yaml where flags don't say it"
    few = args.last_epoch < FEW_EPOCHS and not args.finetune
    return "deit, the flags' defaults" + (", which wants about 300 epochs: --recipe short is for few" if few else "")


def _strategy(args: argparse.Namespace) -> str:
    if args.fusion_plan:
        return f"by --fusion-plan{_method(args)}"
    where = {"upper": f" from layer {args.fusion_layer}", "lower": f" below layer {args.fusion_layer}"}
    fused = args.token_counts[0] - args.token_counts[-1]
    amount = (
        f", {counted(args.fusion_token, 'token')} a layer"
        if args.fusion_token
        else f", {counted(fused, 'token')} in all"
        if fused
        else ""
    )
    schedule = f", {args.fusion_schedule}" if args.fusion_schedule != "constant" else ""
    return f"{args.fusion_strategy}{where.get(args.fusion_strategy, '')}{amount}{schedule}{_method(args)}"


def _method(args: argparse.Namespace) -> str:
    """What is not as in the paper."""
    chosen = {name: getattr(args, f"fusion_{name}") for name in CHOICES}
    return "".join(f", {name} {choice}" for name, choice in chosen.items() if choice != CHOICES[name][0])


def describe_epoch(record: dict, last_epoch: int, best_acc1: float, seconds_left: float) -> str:
    """One line for an epoch's record; epochs count from 0, as in log.txt."""
    skipped = f", {record['skipped_images']} broken images skipped" if record.get("skipped_images") else ""
    ema = f", EMA {record['test_ema_acc1']:.2f} %" if "test_ema_acc1" in record else ""
    return (
        f"epoch {record['epoch']:>{len(str(last_epoch - 1))}}/{last_epoch - 1}: "
        f"loss {record['train_loss']:.4f}, top-1 {record['test_acc1']:.2f} %{ema} (best {best_acc1:.2f} %), "
        f"{record['train_seconds']:.1f} s (waited {record['data_seconds']:.1f} s for data), "
        f"{record['images_per_second']:.0f} images/s, "
        f"peak memory {record['peak_memory_mb']:.0f} MB (training {record['training_memory_mb']:.0f} MB){skipped}"
        f"{f', {clock(seconds_left)} left' if seconds_left else ''}"
    )


def describe_end(records: list[dict], output_dir: str) -> str:
    """One line for a finished run, by the records of its epochs; those of an older run may lack a score."""
    best = max((record for record in records if "test_acc1" in record), key=lambda record: record["test_acc1"])
    return (
        f"done: {counted(len(records), 'epoch')} in {clock(sum(map(seconds, records)))}; "
        f"best top-1 {best['test_acc1']:.2f} % in epoch {best['epoch']}; "
        + (f"log.txt, args.json and checkpoints are in {output_dir}" if output_dir else "nothing was saved")
    )


def describe_evaluation(name: str, scores: dict) -> str:
    """One line for an evaluation."""
    return (
        f"{name}: top-1 {scores['acc1']:.2f} %, top-5 {scores['acc5']:.2f} %, "
        f"loss {scores['loss']:.4f}, {scores['seconds']:.1f} s"
    )


def versions() -> dict[str, str]:
    """Versions that a measurement depends on, and the revision of this code where git knows it."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found["revision"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["revision"] = "unknown"
    return {"versions": found}
