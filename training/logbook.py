"""What a run leaves to read: its settings, one JSON line an epoch, and what TensorBoard shows."""

import json
import math
import tempfile
from pathlib import Path

from training.board import Board
from training.checkpoint import remove_leftovers, replace_file
from training.results import Run, read_log


class Logbook:
    """Writes into a run's output directory: args.json, log.txt and TensorBoard's event files.

    Args:
        output_dir: The run's own directory, as open_directory leaves it.
        settings: The run's settings and what follows from them, as plain data.
        start_epoch: Lines of log.txt from this epoch on are dropped: a resumed run writes them again.
    """

    def __init__(self, output_dir: Path, settings: dict, start_epoch: int) -> None:
        remove_leftovers(output_dir)
        self.log, self.settings = output_dir / "log.txt", settings
        kept = [line for line in read_log(self.log) if line["epoch"] < start_epoch] if self.log.exists() else []
        lines = "".join(json.dumps(line) + "\n" for line in kept)
        for path, text in ((output_dir / "args.json", json.dumps(settings, indent=2) + "\n"), (self.log, lines)):
            replace_file(path, lambda file, text=text: file.write(text.encode()))
        self.board = Board(output_dir, start_epoch)

    def write(self, epoch: dict) -> None:
        """Add one epoch: {"epoch": int, "train_loss": float, ...}, numbers and strings.

        Raises:
            FloatingPointError: A number is not finite, which JSON can't hold.
        """
        numbers = {name: value for name, value in epoch.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"epoch {epoch['epoch']}: {name} is {value}")
        with open(self.log, "a") as file:
            file.write(json.dumps(epoch, allow_nan=False) + "\n")
        self.board.scalars(numbers.pop("epoch"), numbers)

    def finish(self) -> None:
        """Let TensorBoard compare the whole run with others."""
        run = Run(self.log.parent.name, self.settings, read_log(self.log))
        results = {
            "top1": run.epochs[-1]["test_acc1"],
            "best_top1": run.largest("test_acc1"),
            "seconds_per_epoch": run.seconds_per_epoch,
            "training_memory_mb": run.largest("training_memory_mb"),
        }
        self.board.result(run, results)


def open_directory(output_dir: Path, resumed_from: str, auto_resume: bool = False) -> None:
    """Make a run's output directory, or see that what is there is the run that goes on.

    Args:
        output_dir: The run's own directory.
        resumed_from: The checkpoint to continue, or nothing.
        auto_resume: Whatever run is there is the one to continue, from its start where it has no checkpoint yet.

    Raises:
        ValueError: The directory holds another run, its log can't be read, or it can't be written.
    """
    log = output_dir / "log.txt"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise ValueError(f"--output_dir {output_dir}: can't be written ({error.strerror})") from None
    holds_run = (log.exists() and read_log(log)) or (output_dir / "checkpoint.pth").exists()
    goes_on = auto_resume or (resumed_from and Path(resumed_from).parent.resolve() == output_dir.resolve())
    if holds_run and not goes_on:
        raise ValueError(
            f"--output_dir {output_dir}: holds a run already; "
            "continue it with --auto-resume or choose another directory"
        )
