"""Write a run's records: its settings, one JSON line for each epoch, and TensorBoard's files."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.records.lock import locked
from training.records.runs import Run, read_log
from training.records.tensorboard import Board
from training.state import history
from training.state.checkpoint import find, remove_leftovers, replace_file


class Logbook:
    """Write args.json, log.txt and TensorBoard's event files into a run's output directory.

    Args:
        output_dir: The run's own directory, opened by open_directory.
        settings: The run's settings and facts as plain data.
        start_epoch: Lines of log.txt and kept checkpoints from this epoch on are dropped, since a resumed run writes
            them again.
    """

    def __init__(self, output_dir: Path, settings: dict, start_epoch: int) -> None:
        remove_leftovers(output_dir)
        history.remove(output_dir, {epoch for epoch in history.find(output_dir) if epoch >= start_epoch})
        self.log, self.settings = output_dir / "log.txt", settings
        logged = read_log(self.log) if self.log.exists() else []
        self.epochs = [line for line in logged if line["epoch"] < start_epoch]
        lines = "".join(json.dumps(line) + "\n" for line in self.epochs)
        for path, text in ((output_dir / "args.json", json.dumps(settings, indent=2) + "\n"), (self.log, lines)):
            replace_file(path, lambda file, text=text: file.write(text.encode()))
        self.board = Board(output_dir, start_epoch)

    def write(self, epoch: dict) -> None:
        """Add one epoch's record of numbers and strings: {"epoch": int, "train_loss": float, ...}.

        Raises:
            FloatingPointError: A number is not finite, which JSON can't hold.
        """
        numbers = {name: value for name, value in epoch.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"epoch {epoch['epoch']}: {name} is {value}")
        with open(self.log, "a") as file:
            file.write(json.dumps(epoch, allow_nan=False) + "\n")
        self.epochs.append(epoch)
        self.board.scalars(numbers.pop("epoch"), numbers)

    def finish(self) -> None:
        """Add the finished run to TensorBoard's table of hyperparameters."""
        run = Run(self.log.parent.name, self.settings, self.epochs)
        results = {
            "top1": self._column("test_acc1")[-1],
            "best_top1": max(self._column("test_acc1")),
            "seconds_per_epoch": run.seconds_per_epoch,
            "training_memory_mb": max(self._column("training_memory_mb")),
        }
        self.board.result(run, results)

    def _column(self, name: str) -> list[float]:
        """Return a column's values; epochs of an older version, which may not have logged it, are left out."""
        return [line[name] for line in self.epochs if isinstance(line.get(name), int | float)]


def make_directory(output_dir: Path) -> None:
    """Make a directory and its parents; raise ValueError if it can't be written to."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise ValueError(f"--output_dir {output_dir}: can't be written ({error.strerror})") from None


def write_scores(output_dir: Path, scores: dict[str, dict[str, float]], settings: dict) -> None:
    """Write scores.json: scores of the model and of its average, null if not finite, and the evaluation's settings."""
    finite = {
        name: {score: value if math.isfinite(value) else None for score, value in found.items()}
        for name, found in scores.items()
    }
    text = json.dumps({"scores": finite, "settings": settings}, indent=2) + "\n"
    replace_file(output_dir / "scores.json", lambda file: file.write(text.encode()))


@contextmanager
def open_directory(output_dir: Path, resumed_from: str, auto_resume: bool = False) -> Iterator[None]:
    """Make and lock a run's output directory; if it holds a run already, check that this run continues it.

    Args:
        output_dir: The run's own directory.
        resumed_from: The checkpoint to continue; empty for a new run.
        auto_resume: Continue whatever run the directory holds; start from scratch if it has logged nothing yet.

    Raises:
        ValueError: The directory holds another run or one that can't be continued, its log can't be read, another
            process is running in it, or it can't be written to.
    """
    make_directory(output_dir)
    with locked(output_dir):
        check_run(output_dir, resumed_from, auto_resume)
        yield


def check_run(output_dir: Path, resumed_from: str, auto_resume: bool) -> None:
    """Check that a run would overwrite nothing in a directory; raise ValueError if it would."""
    log, saved = output_dir / "log.txt", find(output_dir)
    epochs = read_log(log) if log.exists() else []
    goes_on = auto_resume or (resumed_from and Path(resumed_from).parent.resolve() == output_dir.resolve())
    if (epochs or saved) and not goes_on:
        raise ValueError(
            f"--output_dir {output_dir}: holds a run already; "
            "continue it with --auto-resume or choose another directory"
        )
    if auto_resume and epochs and not saved:
        raise ValueError(
            f"--auto-resume: {log} holds {len(epochs)} epochs, and no checkpoint to continue from; "
            "remove it to start anew, or choose another directory"
        )
