"""Train for one epoch, and evaluate once: the two loops and their measurements.

On a GPU no step waits for the one before: numbers stay on the device and are read every few steps, all at once.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.data import Mixup, RealLabelsImagenet
from timm.utils import accuracy, unwrap_model
from torch import Tensor, nn

from training.runtime.distributed import World, all_reduce, last_process, meet
from training.runtime.memory import PeakMemory
from training.runtime.progress import Progress
from training.runtime.randomness import seed_all
from training.step.epoch import Batches, Learner, StepOptions
from training.step.sums import EpochSums, Step, steps_between_readings
from training.step.update import update


def train_one_epoch(
    learner: Learner,
    batches: Batches,
    options: StepOptions,
    world: World,
    epoch: int,
    *,
    memory: PeakMemory,
    sums: EpochSums | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train on every batch once.

    Args:
        learner: The model, its loss and its optimizer.
        batches: The images, only the remaining ones if sums has steps already.
        options: How a step is taken.
        world: This process among all.
        epoch: Its number.
        memory: Its peak is reset here and read at the end.
        sums: The epoch's running sums from before an interruption; they are continued here.
        after_step: Called after each step; its time counts neither as training nor as waiting.

    Returns:
        train_loss (mean over images) and train_grad_norm (mean over steps), both over finite values only and 0 if there
        are none; skipped_steps; lr (of the last step; the largest of all layers); train_seconds; data_seconds (spent
        waiting for images); images_per_second; peak_memory_mb and training_memory_mb. Losses and images are summed
        over all processes; seconds and memory are the largest of any process.

    Raises:
        FloatingPointError: There are more bad steps than allowed; the message names the step and its loss. It is raised
            when that step is read, which may be some steps later.
        OSError: The loader gave no batch, or no image could be read.
    """
    learner.model.train(options.train_mode)
    memory.reset()
    sums = EpochSums() if sums is None else sums
    read_every = options.read_every or steps_between_readings(world.device)
    progress = Progress(batches.loader, f"epoch {epoch}", world.is_main, done=sums.steps)
    waiting_since = time.perf_counter()
    start = waiting_since - sums.seconds
    for images, labels, weight in _weighed(progress, batches.whole, world, sums, after_step):
        # The batch has come: move it to the device, and mix its images.
        sums.data_seconds += time.perf_counter() - waiting_since
        seed_all(options.seed, epoch, sums.steps, world.rank)
        images = images.to(world.device, non_blocking=True)
        targets = labels.to(world.device, non_blocking=True)
        if batches.mixup is not None:
            images, targets = mix(batches.mixup, images, targets)

        # Learn from it.
        meet(world)
        rate = max(group["lr"] for group in learner.optimizer.param_groups)
        outcome = _step(learner, images, targets, weight, options, world)

        # Count it. Its numbers are read now and then only, because reading waits for a GPU.
        sums.note(Step(epoch, sums.steps, len(images), rate, outcome), options.bad_steps)
        if len(sums.unread) >= read_every:
            sums.read()
        progress.note = f"loss {sums.loss / max(sums.images, 1):.4f}, lr {rate:.3g}"
        sums.seconds = time.perf_counter() - start

        # Time spent after a step, such as for saving, is not training time.
        after_step()
        waiting_since = time.perf_counter()
        start = waiting_since - sums.seconds

    # Read the last steps, whose time counts, and report the epoch over all processes.
    _check_images(sums, batches.whole, world)
    start = time.perf_counter()
    sums.read()
    sums.seconds += time.perf_counter() - start
    loss_sum, images_seen = all_reduce([sums.loss, sums.images], world)
    seconds, data_seconds, peak, training = all_reduce(
        [sums.seconds, sums.data_seconds, memory.peak_mb(), memory.training_mb()], world, "MAX"
    )
    return {
        "train_loss": loss_sum / max(images_seen, 1),
        "train_grad_norm": sums.norm / max(sums.norms, 1),
        "skipped_steps": sums.skipped,
        "lr": sums.rate,
        "train_seconds": seconds,
        "data_seconds": data_seconds,
        "images_per_second": images_seen / seconds,
        "peak_memory_mb": peak,
        "training_memory_mb": training,
    }


def _step(
    learner: Learner, images: Tensor, targets: Tensor, weight: float, options: StepOptions, world: World
) -> Tensor:
    """Compute the loss of a batch and its gradient, and update weights and average if both are finite.

    Args:
        weight: Multiplies the gradient, before processes average theirs.

    Returns:
        The outcome of a Step: float64 [4], on the device.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=world.device)
    for part, last in _parts(images, targets, options.accumulate):
        # Processes average their gradients only in the last part.
        with nullcontext() if last or world.size == 1 else learner.model.no_sync():
            with _autocast(world.device, options.autocast):
                part_loss = learner.objective(learner.model, *part) * (len(part[0]) / len(images))
            weighed = part_loss * weight
            (weighed if learner.scaler is None else learner.scaler.scale(weighed)).backward()
        loss += part_loss.detach()
    culprit = last_process(~loss.isfinite(), world)
    norm, changed, overscaled = update(learner.model, learner.optimizer, culprit < 0, learner.scaler, options.clip_grad)
    if learner.ema is not None:
        learner.ema.update(unwrap_model(learner.model), changed)
    return torch.stack([x.double() for x in (loss, norm, culprit, overscaled)])


def _check_images(sums: EpochSums, whole: int | None, world: World) -> None:
    """Raise OSError if an epoch had no batch, or no image that could be read."""
    if not sums.steps:
        raise OSError("the training data gave no batch")
    if sums.broken == sums.steps * world.size * (whole or 0) > 0:
        raise OSError(f"--skip-bad-images: none of the epoch's {sums.broken} training images can be read")


def _weighed(
    batches: Iterable, whole: int | None, world: World, sums: EpochSums, after_step: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield batches, each with the weight of its mean loss before processes average their gradients."""
    for images, labels in batches:
        if whole is None:
            yield images, labels, 1.0
            continue
        total, empty = all_reduce([float(len(images)), float(len(images) == 0)], world)
        sums.broken += whole * world.size - int(total)
        if not empty:
            yield images, labels, len(images) * world.size / total
        else:
            sums.steps, sums.skipped = sums.steps + 1, sums.skipped + 1
            after_step()


def mix(mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a batch. Mixup needs pairs: an odd batch loses its last image, and a single image is doubled."""
    if len(images) % 2:
        if len(images) == 1:
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        else:
            images, labels = images[:-1], labels[:-1]
    return mixup(images, labels)


def _parts(images: Tensor, targets: Tensor, count: int) -> Iterator[tuple[tuple[Tensor, Tensor], bool]]:
    """Split a batch into `count` parts, or one an image if it has fewer; yield each with whether it is the last."""
    count = min(count, len(images))
    parts = zip(images.tensor_split(count), targets.tensor_split(count), strict=True)
    for number, part in enumerate(parts, start=1):
        yield part, number == count


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable,
    world: World,
    *,
    autocast: torch.dtype | None = None,
    shared_out: bool = False,
    real_labels: RealLabelsImagenet | None = None,
    label: str = "test",
) -> dict[str, float]:
    """Classify every image of the loader.

    Args:
        model: Maps images [B, C, H, W] to logits [B, classes]; not wrapped.
        loader: Batches of images and labels [B].
        world: This process among all.
        autocast: Type in which mixed precision computes; None for fp32.
        shared_out: Whether each process has only its own part of the images, so that scores are summed over them.
        real_labels: ImageNet's reassessed labels of the loader's images, fresh, to score by them too.
        label: Shown with the progress.

    Returns:
        loss (mean over images), acc1 and acc5 (percent), images (their number), seconds; with real_labels, real_acc1
        and real_acc5 (percent of the images that have such a label).

    Raises:
        OSError: There was no image to classify.
    """
    model.eval()
    seed_all(0)  # a model that is random in evaluation too gives the same scores every time
    start = time.perf_counter()
    images_seen = 0
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for images, labels in Progress(loader, label, world.is_main):
        if not len(images):  # all of them were broken
            continue
        images = images.to(world.device, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        with _autocast(world.device, autocast):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        top1, top5 = accuracy(logits, labels, topk=(1, 5))
        # Count whole images, so that the sum doesn't depend on how batches and processes share them out.
        counts = (percent.double() / 100 * len(images) for percent in (top1, top5))
        sums += torch.stack([loss.double(), *(count.round() for count in counts)])
        images_seen += len(images)
        if real_labels is not None:
            real_labels.add_result(logits)
    loss_sum, top1, top5 = sums.tolist()
    if shared_out:
        loss_sum, top1, top5, images_seen = all_reduce([loss_sum, top1, top5, images_seen], world)
    if not images_seen:
        raise OSError("no test image can be read")
    real = {} if real_labels is None else {f"real_acc{k}": real_labels.get_accuracy(k) for k in (1, 5)}
    return {
        "loss": loss_sum / images_seen,
        "acc1": 100 * top1 / images_seen,
        "acc5": 100 * top5 / images_seen,
        "images": int(images_seen),
        "seconds": time.perf_counter() - start,
    } | real


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
