"""Try out a run in a minute: do everything that training does on one batch, and write and read a checkpoint."""

import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from runner import Trainer
from training.runtime.distributed import World, barrier
from training.state import checkpoint
from training.state.training_state import TrainingState
from training.step.sums import EpochSums
from training.words import counted


def check(trainer: Trainer) -> None:
    """Train on a batch of each size, evaluate on one, save and load, and print the result of each; keep nothing.

    Raises:
        FloatingPointError: The loss or its gradient is not finite.
        OSError: There is no batch, an image can't be read, or a checkpoint can't be written.
    """
    settings, world, state = trainer.settings, trainer.world, trainer.state
    trainer.memory.start_training()
    for epoch in sorted({max(state.epoch, stage.first_epoch) for stage in trainer.stages}):
        state.epoch, state.sums = epoch, EpochSums()
        trainer.start_epoch()
        _train(trainer)
    scores = trainer.evaluate(lambda: itertools.islice(readable(trainer.test_batches), 1))
    _say(world, "test", f"one batch in {scores['test_seconds']:.1f} s: loss {scores['test_loss']:.4f}")
    if world.is_main:
        _say(world, "checkpoint", _write_and_read(state, settings.output_dir))
    barrier(world)
    _say(world, "check", "everything works; nothing was kept")


def _train(trainer: Trainer) -> None:
    """Train on the first batch of the epoch, and print what came of it; raise what check raises."""
    world, start = trainer.world, time.perf_counter()
    batch = next(readable(trainer.train_batches), None)
    if batch is None:
        raise OSError("the training data gave no batch")
    images, labels = batch
    _say(
        world,
        "data",
        f"{counted(len(images), 'image')} of {tuple(images.shape[1:])}, labels {labels.min()} to {labels.max()}, "
        f"the first after {time.perf_counter() - start:.1f} s",
    )
    trained = trainer.train([batch])
    if trained["skipped_steps"] and trainer.state.scaler is None:
        raise FloatingPointError("--check: the loss or its gradient is not finite")
    _say(
        world,
        "training",
        f"one step in {trained['train_seconds']:.1f} s: loss {trained['train_loss']:.4f}, "
        f"gradient norm {trained['train_grad_norm']:.4g}, memory {trained['training_memory_mb']:.0f} MB, "
        f"peak {trained['peak_memory_mb']:.0f} MB",
    )


def readable(batches: Iterable) -> Iterator:
    """Yield the batches that have images: under --skip-bad-images a batch may be empty."""
    return (batch for batch in batches if len(batch[0]))


def _say(world: World, label: str, text: str) -> None:
    if world.is_main:
        print(f"{label:<11}{text}", flush=True)


def _write_and_read(state: TrainingState, output_dir: str) -> str:
    """Save the state where the run would, or in a temporary directory, load it again, and describe the result."""
    with leaving_no_directory(Path(output_dir)):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir or None, prefix=".check-") as folder:
            path = Path(folder) / "checkpoint.pth"
            checkpoint.save(path, state.state_dict())
            size, read = path.stat().st_size, checkpoint.load(str(path), "--check")
    for name, weight in state.model.state_dict().items():
        if not torch.equal(read["model"][name], weight.cpu()):
            raise OSError(f"--output_dir {output_dir}: {name} was written and not read back as it was")
    return f"{size / 2**20:.1f} MB written to {output_dir or 'a temporary place'}, and read back the same"


@contextmanager
def leaving_no_directory(path: Path) -> Iterator[None]:
    """Remove a directory and its parents again if they were made in this context and are left empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
