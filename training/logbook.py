"""What a run leaves to read: its settings, one JSON line an epoch, and TensorBoard scalars."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Logbook:
    """Writes into a run's output directory: args.json, log.txt and TensorBoard's event files.

    Args:
        output_dir: The run's own directory; made if it isn't there.
        settings: The run's settings and what follows from them, as plain data.
        start_epoch: Lines of log.txt from this epoch on are dropped: a resumed run writes them again.

    Raises:
        ValueError: The directory holds another run and this one doesn't continue it, or it can't be written.
    """

    def __init__(self, output_dir: Path, settings: dict, start_epoch: int, resumed: bool) -> None:
        self.log = output_dir / "log.txt"
        if self.log.exists() and not resumed:
            raise ValueError(
                f"--output_dir {output_dir}: holds a run already (log.txt); "
                f"continue it with --resume {output_dir}/checkpoint.pth or choose another directory"
            )
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_log(self.log) if line["epoch"] < start_epoch] if self.log.exists() else []
            (output_dir / "args.json").write_text(json.dumps(settings, indent=2) + "\n")
            self.log.write_text("".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise ValueError(f"--output_dir {output_dir}: can't be written ({error.strerror})") from None
        self.board = SummaryWriter(str(output_dir), purge_step=start_epoch)

    def write(self, epoch: dict) -> None:
        """Add one epoch: {"epoch": int, "train_loss": float, ...}, numbers and strings."""
        with open(self.log, "a") as file:
            file.write(json.dumps(epoch) + "\n")
        for name, value in epoch.items():
            if isinstance(value, int | float) and name != "epoch":
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if group in ("train", "test") and rest else f"run/{name}"
                self.board.add_scalar(tag, value, epoch["epoch"])
        self.board.flush()


def read_log(path: Path) -> list[dict]:
    """The epochs of a log.txt, in order."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
