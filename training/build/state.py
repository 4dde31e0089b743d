"""Build the state that training changes, new or continued from a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

import torch
from torch.utils.data import DataLoader, IterableDataset

import fusion
from models_mamba import VisionMamba
from training.build.data import Data
from training.build.fusion import token_counts
from training.build.model import choose_trained
from training.build.optimizer import build_average, build_optimizer, build_scheduler
from training.build.stages import Stage
from training.data.loaders import steps_per_epoch
from training.runtime.distributed import World, all_reduce
from training.runtime.machine import device_name, versions
from training.runtime.precision import autocast_dtype
from training.settings.facts import Facts
from training.settings.rates import scaled_rates
from training.settings.run import RunSettings
from training.settings.settings import Settings
from training.state.training_state import TrainingState, changed_images, changed_settings, start_schedule
from training.step.sums import EpochSums


def gather_facts(
    settings: Settings,
    world: World,
    model: VisionMamba,
    weights: str,
    updates_per_epoch: int | None = None,
    last_epoch: int | None = None,
    stages: Sequence[Stage] = (),
) -> Facts:
    """Gather the facts that follow from the settings, each from the code that owns it.

    Args:
        settings: With image size, classes and checkpoint settled.
        world: This process among all.
        model: The model, with its fusion and head.
        weights: Where its weights come from.
        updates_per_epoch: Steps of an epoch if the rate changes with every step, else 0; None for an evaluation.
        last_epoch: Number of epochs in the schedule; None for an evaluation.
        stages: Those of --train-img-sizes; none without it.
    """
    global_batch = settings.step_size * world.size
    return Facts(
        mixed=settings.mixed,
        token_counts=token_counts(model),
        stages=tuple((stage.first_epoch, stage.size[0]) for stage in stages),
        stage_token_counts=tuple(stage.token_counts for stage in stages),
        flops=fusion.flops(model),
        weights=weights,
        processes=world.size,
        global_batch=global_batch,
        scaled_lr=scaled_rates(settings, global_batch).lr,
        updates_per_epoch=updates_per_epoch,
        last_epoch=last_epoch,
        versions=versions(),
        hardware=device_name(world.device),
        date=f"{date.today()}",
    )


def build_state(
    settings: Settings,
    world: World,
    model: VisionMamba,
    weights: str,
    saved: dict | None,
    data: Data,
    train_batches: DataLoader,
    stages: Sequence[Stage] = (),
) -> tuple[TrainingState, Facts]:
    """Build the parts of a training that change, and gather its facts.

    Args:
        settings: With image size, classes and checkpoint settled.
        world: This process among all.
        model: The model, with its weights, on its device.
        weights: Where its weights come from.
        saved: The checkpoint to continue, whose weights the model already has; None for a new run.
        data: The images.
        train_batches: The loader of the training images.
        stages: As for gather_facts.

    Raises:
        ValueError: The optimizer or schedule can't be built, or the checkpoint can't be continued.
    """
    choose_trained(model, settings.train_only)
    rates = scaled_rates(settings, settings.step_size * world.size)
    optimizer = build_optimizer(settings, model, rates.lr)
    updates_per_epoch = steps_per_epoch(train_batches, settings) if settings.sched_on_updates else 0
    scheduler, last_epoch = build_scheduler(settings, optimizer, rates, updates_per_epoch)
    facts = gather_facts(settings, world, model, weights, updates_per_epoch, last_epoch, stages)
    state = TrainingState(
        model=model,
        ema=build_average(settings, model),
        opt=settings.opt.lower(),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(world.device.type) if autocast_dtype(settings, world) == torch.float16 else None,
        settings=asdict(settings) | asdict(facts),
        classes=data.classes,
        images=data.num_images,
        updates_per_epoch=updates_per_epoch,
        epoch=settings.start_epoch,
    )
    if saved is not None:
        try:
            state.load_state_dict(saved)
            changed = changed_settings(saved.get("settings", {}), state.settings) + changed_images(saved, state.images)
            go_on(settings, state, changed)
            check_steps(state, train_batches)
        except ValueError as error:
            raise ValueError(f"--resume {settings.resume}: {error}") from error
    elif state.epoch:
        start_schedule(scheduler, state.epoch)
    return state, facts


def go_on(settings: RunSettings, state: TrainingState, changed: list[str]) -> None:
    """Check that a resumed run will end as if it had never been interrupted.

    If changed settings are allowed and change the batches, the epoch's running sums start from scratch.

    Raises:
        ValueError: Settings or images differ, and --resume-anyway is not given.
    """
    if changed and not settings.resume_anyway:
        raise ValueError(
            f"{', '.join(changed)}: weights would differ from those of one run; repeat the run's flags, which its "
            "args.json holds, or give --resume-anyway"
        )
    state.changed = changed
    if changed and state.sums.steps:
        state.sums = EpochSums()  # the rest of the epoch no longer consists of the same batches


def check_steps(state: TrainingState, train_batches: DataLoader) -> None:
    """Raise ValueError if more steps of the epoch to continue are done than it now has."""
    if isinstance(train_batches.dataset, IterableDataset):
        return
    done, steps = state.sums.steps, len(train_batches)
    if done > steps:
        raise ValueError(f"{done} steps of its epoch are done, which has {steps} now")


def check_same_start(state: TrainingState, world: World) -> None:
    """Raise ValueError if processes would start at different steps, as when only some of them see a checkpoint."""
    start = [float(state.epoch), float(state.sums.steps)]
    if all_reduce(start, world, "MIN") != all_reduce(start, world, "MAX"):
        raise ValueError(
            "processes start at different steps: --output_dir and --resume must be the same files on every machine"
        )
