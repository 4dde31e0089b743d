"""A training run: epochs one after the other, each evaluated, logged and saved; interrupted, it saves and ends."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from matplotlib.figure import Figure
from timm.data import Mixup
from timm.task import DistillationTeacher
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ssm
from engine import evaluate, train_one_epoch
from fusion import pictures
from models_mamba import VisionMamba
from training.build.model import build_teacher
from training.data.broken_images import SkipBroken
from training.data.loaders import images_per_batch, shared_out, test_loader, train_loader
from training.data.samplers import TrainSampler
from training.records.console import describe_end, describe_epoch
from training.records.logbook import Logbook
from training.records.pace import seconds_left
from training.runtime.distributed import World, barrier
from training.runtime.interruption import InterruptedTraining, Interruption
from training.runtime.memory import PeakMemory
from training.runtime.randomness import SeededImages, seed_all
from training.state import checkpoint
from training.state.training_state import TrainingState
from training.step.criteria import binary_cross_entropy, create_criterion
from training.step.objectives import Classification, Cosub, Distillation, Objective
from training.step.sums import BadSteps, EpochSums


class Trainer:
    """What every epoch of a run needs: loaders, loss, mixup, precision and the watch on memory.

    Args:
        args: The command line.
        world: This process among all.
        state: What training changes.
        train_set, test_set: Images and labels.

    Raises:
        ValueError: The teacher can't be loaded, or no box of cutmix fits the images.
    """

    def __init__(
        self, args: argparse.Namespace, world: World, state: TrainingState, train_set: Dataset, test_set: Dataset
    ) -> None:
        self.args, self.world, self.state = args, world, state
        self.train_set, self.test_set = train_set, test_set
        model = torch.compile(state.model, fullgraph=True) if args.compile else state.model
        self.model = DistributedDataParallel(model) if world.size > 1 else model
        self.train_batches, self.test_batches = train_loader(train_set, args, world), test_loader(test_set, args, world)
        self.objective, self.mixup = build_objective(args, world, state.classes), build_mixup(args)
        self.dtype, self.memory = autocast_dtype(args, world), PeakMemory(world.device)
        self.shared_out = shared_out(test_set, args)

    @property
    def place(self) -> str:
        """Where training goes on: epochs count from 0, steps those that are done; a stream has no place."""
        steps = 0 if isinstance(self.train_set, IterableDataset) else self.state.sums.steps
        return f"epoch {self.state.epoch}, step {steps}"

    def train(self, batches: Iterable, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Train on batches of the state's epoch; what train_one_epoch returns."""
        return train_one_epoch(
            self.model,
            self.objective,
            batches,
            self.state.optimizer,
            self.world,
            self.state.epoch,
            seed=self.args.seed,
            sums=self.state.sums,
            after_step=after_step,
            mixup=self.mixup,
            ema=self.state.ema,
            autocast=self.dtype,
            scaler=self.state.scaler,
            clip_grad=self.args.clip_grad,
            accumulate=self.args.grad_accum_steps,
            train_mode=self.args.train_mode,
            bad_steps=BadSteps(self.args.max_bad_steps, self.args.if_continue_inf, self.args.if_nan2num),
            whole_batch=images_per_batch(self.train_batches) if self.args.skip_bad_images else None,
            memory=self.memory,
        )

    def evaluate(self, batches: Callable[[], Iterable]) -> dict[str, float]:
        """Classify the images of batches() by the weights and, where one is kept, by their average."""
        scores = {}
        for prefix, model in self.state.evaluated_models():
            found = evaluate(
                model, batches(), self.world, autocast=self.dtype, shared_out=self.shared_out, label=prefix
            )
            scores |= {f"{prefix}_{name}": value for name, value in found.items()}
        return scores


def train(trainer: Trainer, logbook: Logbook | None) -> None:
    """Train every epoch that is left; after each, and where a signal interrupts it, save what is done."""
    args, world, state = trainer.args, trainer.world, trainer.state
    output_dir = Path(args.output_dir) if logbook else None
    if not trainer.memory.resets and world.is_main:
        print("peak memory can't be reset on this system: it is that of the whole run, not of each epoch")

    def after_step() -> None:
        state.set_rate()
        if args.save_steps and state.sums.steps % args.save_steps == 0:
            if output_dir:
                save(state, output_dir)
            barrier(world)  # the others wait here, where no time is taken, and not in their next step

    records = []
    trainer.memory.start_training(held_mb=state.optimizer_mb())
    with saving_when_interrupted(world, state, output_dir) as interruption:
        while state.epoch < args.last_epoch:
            epoch = state.epoch
            start_epoch(trainer)
            record = {"epoch": epoch, "scan_backend": ssm.pick(world.device.type).name}
            record |= trainer.train(interruption.between(trainer.train_batches), after_step)
            record |= trainer.evaluate(lambda: interruption.between(trainer.test_batches))
            if args.skip_bad_images:
                record["skipped_images"] = state.sums.broken
            records.append(record)
            if logbook and not checkpoint.find(output_dir):
                save(state, output_dir)  # a log with epochs has a checkpoint beside it at any moment
            state.finish_epoch(record["test_acc1"])
            if logbook:
                logbook.write(record)
                save(state, output_dir, best=state.best_acc1 == record["test_acc1"])
                if args.log_images and state.epoch % args.log_images == 0:
                    logbook.board.pictures(epoch, draw_first_image(state.model, trainer.test_set, world))
                    images = augmented_images(trainer.train_batches)
                    logbook.board.images(epoch, "augmented", pictures.denormalised(state.model, images))
            if world.is_main:
                left = seconds_left(records, args.last_epoch - state.epoch)
                print(describe_epoch(record, args.last_epoch, state.best_acc1, left), flush=True)
    if logbook:
        logbook.finish()
        records = logbook.epochs  # also those before an interruption
    if world.is_main:
        print(describe_end(records, args.output_dir))


@contextmanager
def saving_when_interrupted(world: World, state: TrainingState, output_dir: Path | None) -> Iterator[Interruption]:
    """Where SIGTERM or Ctrl-C ends what is done in this context, the main process saves, and the program exits."""
    with Interruption() as interruption:
        try:
            yield interruption
        except (InterruptedTraining, RuntimeError):
            # Of several processes one may miss another first, which PyTorch raises before a step changes anything.
            if not interruption.signal:
                raise
            if output_dir:
                save(state, output_dir)
            if world.is_main:
                where = f"stopped at epoch {state.epoch}, step {state.sums.steps}"
                print(f"{interruption.signal}: {where}{'; --auto-resume goes on' if output_dir else ''}", flush=True)
            sys.exit(interruption.exit_code)


def start_epoch(trainer: Trainer) -> None:
    """Give the epoch its own order, without the steps that are done, and the rate; a stream starts from new."""
    loader, state = trainer.train_batches, trainer.state
    if isinstance(loader.sampler, TrainSampler):
        loader.sampler.set_epoch(state.epoch, start=state.sums.steps * loader.batch_size)
    else:
        state.sums = EpochSums()
        loader.dataset.set_epoch(state.epoch)
        seed_all(trainer.args.seed, state.epoch, trainer.world.rank)  # else each would start as evaluation left it
    state.set_rate()


def draw_first_image(model: VisionMamba, test_set: Dataset, world: World) -> dict[str, Figure]:
    """What fusion does to the first test image, as figures by name."""
    image, _ = next(sample for sample in test_set if sample is not None)
    return pictures.draw_all(model, image.to(world.device), pictures.three_depths(model))


def augmented_images(batches: DataLoader, count: int = 16) -> Tensor:
    """The first training images of the epoch, as augmented and before any are mixed: [count, C, H, W]."""
    samples = batches.dataset if isinstance(batches.dataset, IterableDataset) else _drawn(batches)
    return torch.stack([image for image, _ in itertools.islice(samples, count)])


def _drawn(batches: DataLoader) -> Iterator[tuple[Tensor, int]]:
    """The samples of the epoch's order that can be read, without a word about the others."""
    batches.sampler.set_epoch(batches.sampler.epoch)  # from its start, also where training went on after it
    dataset = batches.dataset.dataset
    seeded = SeededImages(dataset.dataset if isinstance(dataset, SkipBroken) else dataset)
    for draw in batches.sampler:
        with suppress(OSError):
            yield seeded[draw]


def save(state: TrainingState, output_dir: Path, best: bool = False) -> None:
    """Write checkpoint.pth, and before it best_checkpoint.pth when this epoch is the best so far."""
    names = ["best_checkpoint.pth", "checkpoint.pth"] if best else ["checkpoint.pth"]
    for name in names:
        checkpoint.save(output_dir / name, state.state_dict())


def build_objective(args: argparse.Namespace, world: World, classes: list[str] | None = None) -> Objective:
    """The loss that flags ask for; a teacher must know `classes`, where both sides name them."""
    if args.bce_loss or args.cosub:
        criterion = binary_cross_entropy(soft=not args.bce_loss, smoothing=args.smoothing)
    else:
        criterion = create_criterion(args.mixed, args.smoothing)
    if args.cosub:
        return Cosub(criterion)
    if args.distillation_type == "none":
        return Classification(criterion)
    teacher = DistillationTeacher(build_teacher(args, world.device, classes)).to(world.device)
    return Distillation(
        criterion, teacher, args.distillation_type == "hard", args.distillation_alpha, args.distillation_tau
    )


def build_mixup(args: argparse.Namespace) -> Mixup | None:
    """timm's mixup and cutmix, if either is on; ValueError where no box of cutmix fits the images."""
    if not args.mixed:
        return None
    if args.cutmix_minmax:
        low, high = args.cutmix_minmax
        if any(int(low * side) == int(high * side) for side in args.input_size):
            raise ValueError(f"--cutmix-minmax: no whole number of pixels is {low:g} to {high:g} of {args.input_size}")
    return Mixup(
        args.mixup,
        args.cutmix,
        args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.nb_classes,
    )


def autocast_dtype(args: argparse.Namespace, world: World) -> torch.dtype | None:
    """What mixed precision computes in, None for fp32; by default it is on for a GPU only."""
    on = world.device.type == "cuda" if args.amp is None else args.amp
    return getattr(torch, args.amp_dtype) if on else None
