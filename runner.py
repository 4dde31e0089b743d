"""Run a training: train, evaluate, log and save each epoch; if interrupted, save and exit."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ssm
from engine import evaluate, train_one_epoch
from fusion import pictures
from models_mamba import VisionMamba
from training.build.data import Data
from training.build.objective import build_mixup, build_objective
from training.build.stages import Stage
from training.data.loaders import augmented_images, images_per_batch, shared_out, start_epoch, test_loader
from training.records.console import describe_end, describe_epoch
from training.records.logbook import Logbook
from training.records.pace import seconds_left
from training.records.tensorboard import Board
from training.runtime.distributed import World, all_reduce, barrier, from_main
from training.runtime.interruption import InterruptedTraining, Interruption
from training.runtime.memory import PeakMemory
from training.runtime.precision import autocast_dtype
from training.runtime.spinning import Spinning, watch_others
from training.settings.settings import Settings
from training.settings.stages import stage_of
from training.state import checkpoint, history
from training.state.training_state import NO_SCORE, TrainingState
from training.step.epoch import Batches, Learner, StepOptions
from training.step.sums import BadSteps, EpochSums


class Trainer:
    """Hold what every epoch of a run needs: loaders, loss, mixup, precision and the measurement of memory.

    Args:
        settings: With image size and classes settled.
        world: This process among all.
        state: What training changes.
        data: The images.
        train_batches: The loader of the training images.
        last_epoch: Number of epochs in the schedule.
        stages: What the model takes and fuses in them.

    Raises:
        ValueError: The teacher can't be loaded, or no box of cutmix fits the images.
    """

    def __init__(
        self,
        settings: Settings,
        world: World,
        state: TrainingState,
        data: Data,
        train_batches: DataLoader,
        last_epoch: int,
        stages: Sequence[Stage],
    ) -> None:
        self.settings, self.world, self.state = settings, world, state
        self.train_batches, self.test_set = train_batches, data.test
        self.last_epoch, self.stages = last_epoch, stages
        model = torch.compile(state.model, fullgraph=True) if settings.compile else state.model
        model = DistributedDataParallel(model) if world.size > 1 else model
        objective = build_objective(settings, world, state.classes)
        self.learner = Learner(model, objective, state.optimizer, state.ema, state.scaler)
        self.mixup = build_mixup(settings)
        self.whole_batch = images_per_batch(train_batches) if settings.skip_bad_images else None
        self.options = StepOptions(
            seed=settings.seed,
            autocast=autocast_dtype(settings, world),
            clip_grad=settings.clip_grad,
            accumulate=settings.grad_accum_steps,
            train_mode=settings.train_mode,
            bad_steps=BadSteps(settings.max_bad_steps, settings.if_continue_inf, settings.if_nan2num),
        )
        self.test_batches, self.shared_out = test_loader(data.test, settings, world), shared_out(data.test, settings)
        self.memory = PeakMemory(world.device)

    @property
    def place(self) -> str:
        """Describe where training starts or resumes: epoch, steps done (0 for a stream), and settings that changed."""
        steps = 0 if self.streams else self.state.sums.steps
        differs = f", although {', '.join(self.state.changed)}" if self.state.changed else ""
        return f"epoch {self.state.epoch}, step {steps}{differs}"

    @property
    def streams(self) -> bool:
        """Return whether training images come as a stream, which can't continue inside an epoch."""
        return isinstance(self.train_batches.dataset, IterableDataset)

    def stage(self, epoch: int) -> Stage:
        """Return the stage that an epoch belongs to."""
        return self.stages[stage_of(epoch, self.settings)]

    def start_epoch(self) -> None:
        """Set the order of the images, without the steps already done, and the learning rate of the state's epoch."""
        state, seed = self.state, self.settings.seed
        if not start_epoch(self.train_batches, state.epoch, state.sums.steps, seed, self.world.rank):
            state.sums = EpochSums()
        state.set_rate()

    def evaluates(self, epoch: int) -> bool:
        """Return whether an epoch ends with an evaluation: every --val-interval epochs, and the last one."""
        return (epoch + 1) % self.settings.val_interval == 0 or epoch + 1 == self.last_epoch

    def seconds_left(self, records: list[dict]) -> float:
        """Estimate the seconds of the epochs that are left from the records of those that are done."""
        left = range(self.state.epoch, self.last_epoch)
        done_work = [self.stage(record["epoch"]).flops for record in records]
        return seconds_left(records, done_work, [self.stage(e).flops for e in left], sum(map(self.evaluates, left)))

    def train(self, batches: Iterable, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Train on batches of the state's epoch, in its stage, and return what train_one_epoch returns."""
        with self.stage(self.state.epoch).entered(self.state.model):
            return train_one_epoch(
                self.learner,
                Batches(batches, self.mixup, self.whole_batch),
                self.options,
                self.world,
                self.state.epoch,
                memory=self.memory,
                sums=self.state.sums,
                after_step=after_step,
            )

    def evaluate(self, batches: Callable[[], Iterable]) -> dict[str, float]:
        """Evaluate the weights and, if one is kept, their average on the images of batches()."""
        scores = {}
        for prefix, model in self.state.evaluated_models():
            found = evaluate(
                model, batches(), self.world, autocast=self.options.autocast, shared_out=self.shared_out, label=prefix
            )
            scores |= {f"{prefix}_{name}": value for name, value in found.items() if name != "images"}
        return scores


def train(trainer: Trainer, logbook: Logbook | None) -> None:
    """Train every epoch that is left; save after each of them, and when a signal interrupts one."""
    settings, world, state = trainer.settings, trainer.world, trainer.state
    output_dir = Path(settings.output_dir) if logbook else None
    if not trainer.memory.resets and world.is_main:
        print("peak memory can't be reset on this system: it is that of the whole run, not of each epoch")

    spinning = Spinning()

    def after_step() -> None:
        state.set_rate()
        spinning.look()
        if settings.save_steps and state.sums.steps % settings.save_steps == 0:
            if output_dir:
                save(state, output_dir)
            barrier(world)  # processes wait for the save here, where no time is measured, and not in their next step

    if output_dir and not (output_dir / "best_checkpoint.pth").exists():
        state.best_acc1 = NO_SCORE  # the best of another directory is not kept here
    records = []
    trainer.memory.start_training(held_mb=state.optimizer_mb())
    with saving_when_interrupted(world, state, output_dir) as interruption:
        while state.epoch < trainer.last_epoch:
            epoch = state.epoch
            trainer.start_epoch()
            record = {"epoch": epoch, "scan_backend": ssm.pick(world.device.type).name, "processes": world.size}
            if settings.train_img_sizes:
                stage = trainer.stage(epoch)
                tokens = {"tokens": stage.token_counts[0], "tokens_at_end": stage.token_counts[-1]}
                record |= {"image_size": stage.size[0], **tokens}
            others = watch_others()
            record |= trainer.train(interruption.between(trainer.train_batches), after_step)
            (record["cores_of_others"],) = all_reduce([others.busy_cores()], world, "MAX")
            acc1 = None
            if trainer.evaluates(epoch):
                with keeping_the_epoch(state, None if trainer.streams else output_dir):
                    record |= trainer.evaluate(lambda: interruption.between(trainer.test_batches))
                    acc1 = from_main(record["test_acc1"], world)
            if settings.skip_bad_images:
                record["skipped_images"] = state.sums.broken
            records.append(record)
            if logbook and not checkpoint.find(output_dir):
                save(state, output_dir)  # so that a log with epochs always has a checkpoint beside it
            improved = state.finish_epoch(acc1)
            if logbook:
                logbook.write(record)
                save_epoch(state, output_dir, logbook.epochs, settings.checkpoint_hist, improved)
                if settings.log_images and state.epoch % settings.log_images == 0:
                    with trainer.memory.aside():
                        log_images(trainer, logbook.board, epoch)
            barrier(world)  # for the main process to have saved, before the next epoch's time begins
            if world.is_main:
                left = trainer.seconds_left(records)
                print(describe_epoch(record, trainer.last_epoch, state.best_acc1, left), flush=True)
    spinning.allow()
    if logbook:
        logbook.finish()
        records = logbook.epochs  # includes the epochs before an interruption
    if world.is_main:
        print(describe_end(records, settings.output_dir))


@contextmanager
def keeping_the_epoch(state: TrainingState, output_dir: Path | None) -> Iterator[None]:
    """Save if this context fails, by a broken image or for want of memory: the epoch need not be trained again.

    Streams, which train an epoch from its start whenever they continue, keep the state before it.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError):
        if output_dir:
            with suppress(OSError, RuntimeError):  # what stopped the evaluation matters more
                save(state, output_dir)
        raise


@contextmanager
def saving_when_interrupted(world: World, state: TrainingState, output_dir: Path | None) -> Iterator[Interruption]:
    """If SIGTERM, Ctrl-C or the like interrupts this context, save on the main process and exit the program."""
    with Interruption() as interruption:
        try:
            yield interruption
        except (InterruptedTraining, RuntimeError):
            # One process may first notice that another is gone: PyTorch then raises RuntimeError before a step changes
            # anything.
            if not interruption.signal:
                raise
            state.sums.read()  # finish the steps that this GPU has begun, since other processes wait for them
            if output_dir:
                save(state, output_dir)
            if world.is_main:
                where = f"stopped at epoch {state.epoch}, step {state.sums.steps}"
                print(
                    f"{interruption.signal}: {where}{'; continue with --auto-resume' if output_dir else ''}", flush=True
                )
            sys.exit(interruption.exit_code)


def log_images(trainer: Trainer, board: Board, epoch: int) -> None:
    """Show TensorBoard what fusion does to the first test image, and training images as the model sees them."""
    model = trainer.state.model
    board.pictures(epoch, draw_first_image(model, trainer.test_set, trainer.world))
    board.images(epoch, "augmented", pictures.denormalised(model, augmented_images(trainer.train_batches)))


def draw_first_image(model: VisionMamba, test_set: Dataset, world: World) -> dict[str, Figure]:
    """Draw what fusion does to the first test image, as figures by name."""
    image, _ = next(sample for sample in test_set if sample is not None)
    return pictures.draw_all(model, image.to(world.device), pictures.three_depths(model))


def save_epoch(state: TrainingState, output_dir: Path, records: list[dict], count: int, improved: bool) -> None:
    """Save after an epoch, the last of the records; keep the checkpoints of the best `count` epochs too.

    These come first: if the run is killed before the rest is written, it trains the epoch again.
    """
    record = records[-1]
    if count:
        keep = history.best(output_dir, records, record["epoch"], count)
        if record["epoch"] in keep:
            checkpoint.save(output_dir / history.name(record["epoch"]), state.state_dict())
        history.remove(output_dir, history.find(output_dir).keys() - keep)
    save(state, output_dir, best=improved)


def save(state: TrainingState, output_dir: Path, best: bool = False) -> None:
    """Write checkpoint.pth, and before it best_checkpoint.pth if this epoch is the best so far."""
    names = ["best_checkpoint.pth", "checkpoint.pth"] if best else ["checkpoint.pth"]
    for name in names:
        checkpoint.save(output_dir / name, state.state_dict())


def rewind(state: TrainingState, output_dir: Path) -> None:
    """Make a state the furthest checkpoint of its run's directory, and say what is given up for it, if anything is.

    Otherwise --auto-resume would later go on from the epochs that this run replaces.
    """
    ahead = checkpoint.beyond(output_dir, state.epoch, state.sums.steps)
    if not ahead:
        return
    save(state, output_dir)
    for path in ahead:
        if path.name != "checkpoint.pth":
            path.unlink()
    print(f"{output_dir}: trains again from epoch {state.epoch}, step {state.sums.steps}; gives up what came after it")
