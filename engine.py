"""One epoch of training, one evaluation: the two loops, and what they measure."""

import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import AverageMeter, ModelEmaV3, accuracy
from torch import Tensor, nn

from training.distributed import World, all_reduce
from training.memory import PeakMemory
from training.progress import Progress


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    world: World,
    epoch: int,
    *,
    mixup: Mixup | None = None,
    ema: ModelEmaV3 | None = None,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip_grad: float | None = None,
    memory: PeakMemory,
) -> dict[str, float]:
    """Train on every batch of the loader once.

    Args:
        model: Images [B, 3, H, W] to logits [B, classes]; wrapped for several processes where there are.
        criterion: Loss of logits and targets.
        loader: Batches of images and labels [B].
        optimizer: Steps once a batch.
        world: This process among all.
        epoch: Its number, for messages.
        mixup: Mixes images and turns labels into targets [B, classes].
        ema: Average of the weights, updated every step.
        autocast: What mixed precision computes in; None for fp32.
        scaler: Scales the loss, for fp16.
        clip_grad: Largest norm of the gradient.
        memory: Its peak is reset here and read at the end.

    Returns:
        train_loss and train_grad_norm (means over steps; norms that are not finite, of which a scaler makes some, stay
        out, and where none is finite it is 0), lr, train_seconds, data_seconds (spent waiting for images),
        images_per_second, peak_memory_mb and training_memory_mb; sums and maxima over all processes.

    Raises:
        FloatingPointError: The loss is not finite; names epoch, step and the last finite loss.
    """
    model.train()
    memory.reset()
    losses, norms = AverageMeter(), AverageMeter()
    images_seen, data_seconds, norm = 0, 0.0, 0.0
    progress = Progress(loader, f"epoch {epoch}", world.is_main)
    start = waiting_since = time.perf_counter()
    for step, (images, labels) in enumerate(progress):
        data_seconds += time.perf_counter() - waiting_since
        images = images.to(world.device, non_blocking=True)
        targets = labels.to(world.device, non_blocking=True)
        if mixup is not None:
            images, targets = mix(mixup, images, targets)

        with _autocast(world.device, autocast):
            loss = criterion(model(images), targets)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"epoch {epoch}, step {step}: the loss is {loss.item()}; the last finite loss was {losses.val:.4f}, "
                f"gradient norm {norm:.4g}, learning rate {optimizer.param_groups[0]['lr']:.3g}"
            )
        norm = _update(model, loss, optimizer, scaler, clip_grad)
        if math.isfinite(norm):
            norms.update(norm)
        if ema is not None:
            ema.update(getattr(model, "module", model))

        losses.update(loss.item(), len(images))
        images_seen += len(images)
        progress.note = f"loss {losses.avg:.4f}, lr {optimizer.param_groups[0]['lr']:.3g}"
        waiting_since = time.perf_counter()
    if not images_seen:
        raise ValueError("the training data gave no batch")

    seconds = time.perf_counter() - start
    loss_sum, images_seen = all_reduce([losses.sum, images_seen], world)
    seconds, data_seconds, peak, training = all_reduce(
        [seconds, data_seconds, memory.peak_mb(), memory.training_mb()], world, "MAX"
    )
    return {
        "train_loss": loss_sum / images_seen,
        "train_grad_norm": norms.avg,
        "lr": optimizer.param_groups[0]["lr"],
        "train_seconds": seconds,
        "data_seconds": data_seconds,
        "images_per_second": images_seen / seconds,
        "peak_memory_mb": peak,
        "training_memory_mb": training,
    }


def mix(mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a batch; one of odd length, which Mixup can't pair, goes without its last image unless it has only one."""
    if len(images) % 2:
        if len(images) == 1:
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        else:
            images, labels = images[:-1], labels[:-1]
    return mixup(images, labels)


def _update(
    model: nn.Module,
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    clip_grad: float | None,
) -> float:
    """Step against the gradient of the loss; returns the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return norm.item()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable,
    world: World,
    *,
    autocast: torch.dtype | None = None,
    shared_out: bool = False,
    label: str = "test",
) -> dict[str, float]:
    """Classify every image of the loader.

    Args:
        model: Images [B, 3, H, W] to logits [B, classes], unwrapped.
        loader: Batches of images and labels [B].
        world: This process among all.
        autocast: What mixed precision computes in; None for fp32.
        shared_out: Each process has its own part of the images: sum over processes.
        label: Shown with the progress.

    Returns:
        loss, acc1 and acc5 (percent), seconds.
    """
    model.eval()
    start = time.perf_counter()
    loss_sum = top1 = top5 = images_seen = 0.0
    for images, labels in Progress(loader, label, world.is_main):
        images = images.to(world.device, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        with _autocast(world.device, autocast):
            logits = model(images)
        batch1, batch5 = accuracy(logits, labels, topk=(1, 5))
        loss_sum += F.cross_entropy(logits.float(), labels, reduction="sum").item()
        top1 += batch1.item() * len(images)
        top5 += batch5.item() * len(images)
        images_seen += len(images)
    if shared_out:
        loss_sum, top1, top5, images_seen = all_reduce([loss_sum, top1, top5, images_seen], world)
    if not images_seen:
        raise ValueError("the test data gave no batch")
    return {
        "loss": loss_sum / images_seen,
        "acc1": top1 / images_seen,
        "acc5": top5 / images_seen,
        "seconds": time.perf_counter() - start,
    }


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
