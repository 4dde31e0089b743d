"""Print a run: an overview before training, then one line for each epoch."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import Dataset

import ssm
from fusion import CHOICES, flops, format_counts
from training.data.loaders import usable_workers
from training.records.pace import seconds
from training.runtime.distributed import World
from training.runtime.machine import device_name
from training.runtime.precision import autocast_dtype
from training.runtime.progress import length
from training.runtime.threads import contended, usable_cores
from training.settings.facts import Facts
from training.settings.model import FusionMethodSettings, FusionSettings
from training.settings.rates import FALLING, IMAGES, scaled_rates
from training.settings.run import RunSettings
from training.settings.settings import Settings
from training.words import clock, counted

FEW_EPOCHS = 50  # with fewer epochs, DeiT's recipe hardly learns anything when it starts from new weights


def print_overview(
    settings: Settings,
    facts: Facts,
    world: World,
    model: nn.Module,
    train_set: Dataset | None,
    test_set: Dataset,
    place: str = "",
) -> None:
    """Print, on the main process, what is about to run.

    Args:
        settings: The run's settings.
        facts: What followed from them.
        world: This process among all.
        model: The model, with its fusion and head.
        train_set: The training images; None for an evaluation.
        test_set: The test images.
        place: Epoch and step at which training starts, shown if it resumes from a checkpoint.
    """
    if not world.is_main:
        return
    height, width = settings.input_size
    grey = ", grey" if settings.in_chans == 1 else ""
    parameters = sum(p.numel() for p in model.parameters())
    scan = ssm.pick(world.device.type)
    classes = counted(settings.nb_classes, "class", "classes")
    processes = counted(world.size, "process", "processes")
    images = f"{_count(test_set)} test image{'' if length(test_set) == 1 else 's'}"
    if train_set is not None:
        images = f"{_count(train_set)} training and {images}"
    rows = [
        ("model", f"{settings.model}, {parameters:,} parameters, {height} x {width} pixels{grey}"),
        ("weights", facts.weights + _start(settings, place)),
        ("data", f"{settings.data_set}, {images}, {classes}, {_workers(settings.num_workers)}"),
        ("device", f"{device_name(world.device)}, {_precision(autocast_dtype(settings, world), world.device)}"),
        ("scan", f"{scan.name} backend ({scan.reason})"),
        ("fusion", f"{_strategy(settings, facts)}; tokens before layer 0 and after each layer:"),
        ("", format_counts(facts.token_counts)),
        *_stages(facts),
        *(("note", note) for note in settings.notes),
        ("cost", f"{facts.flops / 1e6:,.0f} million multiply-adds an image, forward{_share(facts, model)}"),
    ]
    if not settings.eval:
        accumulated = f" x {settings.grad_accum_steps} accumulated" if settings.grad_accum_steps > 1 else ""
        warming = ", all warm-up" if settings.warmup_epochs >= facts.last_epoch else ""
        rule = "" if settings.unscale_lr else f" = {settings.lr:g} x {facts.global_batch} / {IMAGES}"
        falling = f" to {scaled_rates(settings, facts.global_batch).min_lr:.4g}" if settings.sched in FALLING else ""
        rows += [
            ("recipe", _recipe(settings, facts)),
            ("batch", f"{settings.batch_size} x {processes}{accumulated} = {facts.global_batch}"),
            (
                "optimizer",
                f"{settings.opt}, learning rate {facts.scaled_lr:.4g}{rule}, {settings.sched}{falling}, "
                f"{counted(facts.last_epoch, 'epoch')}{warming}",
            ),
            ("output", settings.output_dir or "nothing is saved; --output_dir DIR keeps log and checkpoints"),
        ]
    for label, text in rows:
        print(f"{label:<11}{text}")
    print(flush=True)


def _stages(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield two rows for each stage of --train-img-sizes: its images and epochs, and its tokens."""
    starts = pairwise([*facts.stages, (facts.last_epoch, None)])
    for ((first, side), (end, _)), counts in zip(starts, facts.stage_token_counts, strict=True):
        epochs = f"epoch {first}" if first == end - 1 else f"epochs {first} to {end - 1}"
        yield "training", f"{side} x {side} pixels in {epochs}; tokens before layer 0 and after each layer:"
        yield "", format_counts(counts)


def _start(settings: RunSettings, place: str) -> str:
    if settings.resume:
        return place and f", continues at {place}"
    return f", no checkpoint in {settings.output_dir} yet" if settings.auto_resume else ""


def _count(dataset: Dataset) -> str:
    images = length(dataset)
    return "streamed" if images is None else f"{images:,}"


def _workers(wanted: int) -> str:
    started = usable_workers(wanted)
    lowered = f" (--num_workers {wanted} lowered to the cores there are)" if started < wanted else ""
    return f"{counted(started, 'loading process', 'loading processes')}{lowered}"


def _precision(autocast: torch.dtype | None, device: torch.device) -> str:
    if autocast is None:
        return "fp32"
    emulated = autocast is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(False)
    slow = ", which this GPU only emulates: --amp-dtype float16 is faster" if emulated else ""
    return f"mixed precision in {str(autocast).removeprefix('torch.')}{slow}"


def _recipe(settings: Settings, facts: Facts) -> str:
    if settings.recipe != "deit":
        return f"{settings.recipe}, as in recipes/{settings.recipe}.yaml where flags don't say it"
    few = facts.last_epoch < FEW_EPOCHS and not (settings.finetune or settings.pretrained)
    return "deit, the flags' defaults" + (", which wants about 300 epochs: --recipe short is for few" if few else "")


def _strategy(settings: FusionSettings, facts: Facts) -> str:
    rest = (", at most half of a layer's" if settings.fusion_clip else "") + _method(settings)
    recipe = f"recipe {settings.fusion_recipe}, " if settings.fusion_recipe else ""
    if settings.fusion_plan:
        return f"{recipe}by --fusion-plan{rest}"
    where = {"upper": f" from layer {settings.fusion_layer}", "lower": f" below layer {settings.fusion_layer}"}
    fused = facts.token_counts[0] - facts.token_counts[-1]
    amount = (
        f", {counted(settings.fusion_token, 'token')} a layer"
        if settings.fusion_token
        else f", {counted(fused, 'token')} in all"
        if fused
        else ""
    )
    schedule = f", {settings.fusion_schedule}" if settings.fusion_schedule != "constant" else ""
    strategy = f"{settings.fusion_strategy}{where.get(settings.fusion_strategy, '')}"
    return f"{recipe}{strategy}{amount}{schedule}{rest}"


def _share(facts: Facts, model: nn.Module) -> str:
    """Return what fusion leaves of the multiply-adds, such as ', 0.702 of those without fusion'; '' if it is off."""
    if facts.token_counts[0] == facts.token_counts[-1]:
        return ""
    return f", {facts.flops / flops(model, [0] * len(model.layers)):.3f} of those without fusion"


def _method(settings: FusionMethodSettings) -> str:
    """Name the choices of the fusion method that differ from the paper's."""
    chosen = {name: getattr(settings, f"fusion_{name}") for name in CHOICES}
    return "".join(f", {name} {choice}" for name, choice in chosen.items() if choice != CHOICES[name][0])


def describe_epoch(record: dict, last_epoch: int, best_acc1: float, seconds_left: float) -> str:
    """Format an epoch's record as one line; epochs count from 0, as in log.txt."""
    skipped = f", {record['skipped_images']} broken images skipped" if record.get("skipped_images") else ""
    shared = _shared(record["cores_of_others"])
    return (
        f"epoch {record['epoch']:>{len(str(last_epoch - 1))}}/{last_epoch - 1}: {_images(record)}"
        f"loss {record['train_loss']:.4f}, {_score(record, best_acc1)}, "
        f"{record['train_seconds']:.1f} s (waited {record['data_seconds']:.1f} s for data), "
        f"{record['images_per_second']:.0f} images/s, "
        f"peak memory {record['peak_memory_mb']:.0f} MB (training {record['training_memory_mb']:.0f} MB)"
        f"{skipped}{shared}{f', {clock(seconds_left)} left' if seconds_left else ''}"
    )


def _images(record: dict) -> str:
    """Return the size and tokens of the training images, such as '160 pixels, 101 to 17 tokens, ', if they grow."""
    if "image_size" not in record:
        return ""
    first, last = record["tokens"], record["tokens_at_end"]
    tokens = f"{first} tokens" if first == last else f"{first} to {last} tokens"
    return f"{record['image_size']} pixels, {tokens}, "


def _score(record: dict, best_acc1: float) -> str:
    if "test_acc1" not in record:
        return "not evaluated"
    ema = f", EMA {record['test_ema_acc1']:.2f} %" if "test_ema_acc1" in record else ""
    return f"top-1 {record['test_acc1']:.2f} %{ema} (best {best_acc1:.2f} %)"


def describe_end(records: list[dict], output_dir: str) -> str:
    """Format a finished run as one line from its epochs' records; those of an older run may lack a score."""
    best = max((record for record in records if "test_acc1" in record), key=lambda record: record["test_acc1"])
    return (
        f"done: {counted(len(records), 'epoch')} in {clock(sum(map(seconds, records)))}; "
        f"best top-1 {best['test_acc1']:.2f} % in epoch {best['epoch']}; "
        + (f"log.txt, args.json and checkpoints are in {output_dir}" if output_dir else "nothing was saved")
    )


def _shared(cores_of_others: float) -> str:
    if not contended(cores_of_others, torch.get_num_threads()):
        return ""
    return f", processor shared: other processes took {cores_of_others:.1f} of {counted(len(usable_cores()), 'core')}"


def describe_evaluation(name: str, scores: dict, expected: int) -> str:
    """Format the scores of an evaluation as one line, with the number of images if it is not the one expected."""
    images = f", {scores['images']:,} of {expected:,} images" if scores["images"] != expected else ""
    real = (
        f"ReaL top-1 {scores['real_acc1']:.2f} %, top-5 {scores['real_acc5']:.2f} %, " if "real_acc1" in scores else ""
    )
    return (
        f"{name}: top-1 {scores['acc1']:.2f} %, top-5 {scores['acc5']:.2f} %, {real}"
        f"loss {scores['loss']:.4f}{images}, {scores['seconds']:.1f} s"
    )
