"""A training run: epochs one after the other, each evaluated, logged and saved; interrupted, it saves and ends."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from timm.data import Mixup
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import ssm
from engine import evaluate, train_one_epoch
from fusion import pictures
from models_mamba import VisionMamba
from training import checkpoint
from training.distributed import World
from training.interruption import InterruptedTraining, Interruption
from training.loaders import shared_out, test_loader, train_loader
from training.logbook import Logbook
from training.losses import create_criterion
from training.memory import PeakMemory
from training.overview import describe_epoch
from training.samplers import TrainSampler
from training.state import TrainingState
from training.steps import BadSteps, EpochSums


def train(
    args: argparse.Namespace,
    world: World,
    state: TrainingState,
    logbook: Logbook | None,
    train_set: Dataset,
    test_set: Dataset,
) -> None:
    """Train every epoch that is left; after each, and where a signal interrupts it, save what is done."""
    model = DistributedDataParallel(state.model) if world.size > 1 else state.model
    train_batches, test_batches = train_loader(train_set, args, world), test_loader(test_set, args, world)
    criterion, mixup = create_criterion(args.mixed, args.smoothing), build_mixup(args)
    dtype, memory = autocast_dtype(args, world), PeakMemory(world.device)
    shared = shared_out(test_set, args)
    output_dir = Path(args.output_dir) if logbook else None
    if not memory.resets and world.is_main:
        print("peak memory can't be reset on this system: it is that of the whole run, not of each epoch")

    def after_step() -> None:
        state.set_rate()
        if output_dir and args.save_steps and state.sums.steps % args.save_steps == 0:
            save(state, output_dir)

    memory.start_training()
    with saving_when_interrupted(world, state, output_dir) as interruption:
        while state.epoch < args.last_epoch:
            epoch = state.epoch
            start_epoch(train_batches, state)
            record = {"epoch": epoch, "scan_backend": ssm.pick(world.device.type).name} | train_one_epoch(
                model,
                criterion,
                interruption.between(train_batches),
                state.optimizer,
                world,
                epoch,
                seed=args.seed,
                sums=state.sums,
                after_step=after_step,
                mixup=mixup,
                ema=state.ema,
                autocast=dtype,
                scaler=state.scaler,
                clip_grad=args.clip_grad,
                bad_steps=BadSteps(args.max_bad_steps, args.if_continue_inf, args.if_nan2num),
                memory=memory,
            )
            for prefix, evaluated in state.evaluated_models():
                batches = interruption.between(test_batches)
                scores = evaluate(evaluated, batches, world, autocast=dtype, shared_out=shared, label=prefix)
                record |= {f"{prefix}_{name}": value for name, value in scores.items()}
            state.finish_epoch(record["test_acc1"])
            if logbook:
                logbook.write(record)
                save(state, output_dir, best=state.best_acc1 == record["test_acc1"])
                if args.log_images and state.epoch % args.log_images == 0:
                    logbook.write_pictures(draw_first_image(state.model, test_set, world), epoch)
            if world.is_main:
                print(describe_epoch(record, args.last_epoch, state.best_acc1), flush=True)


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


def start_epoch(loader: DataLoader, state: TrainingState) -> None:
    """Give the epoch its own order, without the steps that are done, and the rate; a stream starts from new."""
    if isinstance(loader.sampler, TrainSampler):
        loader.sampler.set_epoch(state.epoch, start=state.sums.steps * loader.batch_size)
    else:
        state.sums = EpochSums()
        loader.dataset.set_epoch(state.epoch)
    state.set_rate()


def draw_first_image(model: VisionMamba, test_set: Dataset, world: World) -> dict[str, Figure]:
    """What fusion does to the first test image, as figures by name."""
    image, _ = next(iter(test_set))
    return pictures.draw_all(model, image.to(world.device), pictures.three_depths(model))


def save(state: TrainingState, output_dir: Path, best: bool = False) -> None:
    """Write checkpoint.pth, and before it best_checkpoint.pth when this epoch is the best so far."""
    names = ["best_checkpoint.pth", "checkpoint.pth"] if best else ["checkpoint.pth"]
    for name in names:
        checkpoint.save(output_dir / name, state.state_dict())


def build_mixup(args: argparse.Namespace) -> Mixup | None:
    """timm's mixup and cutmix, if either is on."""
    if not args.mixed:
        return None
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
