"""Write what TensorBoard shows of a run: scalars in a few groups, pictures, and settings beside results."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from training.records.runs import Run, fused, strategy
from training.settings.facts import recorded

# The endings of column names in log.txt that belong to each group.
GROUPS = {
    "accuracy": ("_acc1", "_acc5"),
    "loss": ("_loss",),
    "optimizer": ("lr", "_grad_norm", "skipped_steps"),
    "time": ("_seconds", "_per_second"),
    "memory": ("_mb",),
}
SHOWN = recorded(shown=True)  # settings that the table of runs shows, besides those of the fusion


def tag(column: str) -> str:
    """Return the name under which TensorBoard shows a column of the log, such as accuracy/test_acc1."""
    return f"{next((group for group, ends in GROUPS.items() if column.endswith(ends)), 'run')}/{column}"


def check_wandb() -> None:
    """Raise ValueError if Weights & Biases is not installed."""
    if find_spec("wandb") is None:
        raise ValueError("--log-wandb: needs the package wandb: pip install wandb")


def follow_with_wandb(project: str, settings: dict) -> None:
    """Let Weights & Biases copy everything that TensorBoard is given from now on; a resumed run stays the same run.

    Raises:
        OSError: Weights & Biases can't be reached, or doesn't know the user.
    """
    import wandb  # imported only by runs that ask for it

    directory = Path(settings["output_dir"]).resolve()
    known_as = hashlib.sha1(str(directory).encode()).hexdigest()[:16]
    try:
        wandb.init(
            project=project,
            name=directory.name,
            id=known_as,
            resume="allow",
            config=settings,
            sync_tensorboard=True,
        )
    except Exception as error:  # wandb raises exceptions of many types
        raise OSError(f"--log-wandb: {error}") from error


class Board:
    """Write TensorBoard's files into a run's output directory.

    Args:
        output_dir: The run's own directory.
        start_epoch: Entries of this and later epochs are hidden, since a resumed run writes them again.
    """

    def __init__(self, output_dir: Path, start_epoch: int) -> None:
        self.writer = SummaryWriter(str(output_dir), purge_step=start_epoch)

    def scalars(self, epoch: int, values: dict[str, float]) -> None:
        """Add an epoch's numbers, given by the names of their columns."""
        for column, value in values.items():
            self.writer.add_scalar(tag(column), value, epoch)
        self.writer.flush()

    def pictures(self, epoch: int, figures: dict[str, Figure]) -> None:
        """Add an epoch's figures, given by name."""
        for name, figure in figures.items():
            self.writer.add_figure(f"pictures/{name}", figure, epoch)
        self.writer.flush()

    def images(self, epoch: int, name: str, pixels: Tensor) -> None:
        """Add images [N, 3, H, W], with values from 0 to 1, side by side."""
        self.writer.add_images(f"images/{name}", pixels, epoch)
        self.writer.flush()

    def result(self, run: Run, results: dict[str, float]) -> None:
        """Add a finished run to the table of hyperparameters in which TensorBoard compares runs."""
        # TensorBoard first shows only a few columns, in alphabetical order: those of the fusion must be among them.
        compared = {"fused": fused(run), "fusion": strategy(run)} | {name: run.settings[name] for name in SHOWN}
        self.writer.add_hparams(compared, {f"result/{name}": value for name, value in results.items()}, run_name=".")
        self.writer.flush()
