"""Keep the checkpoints of a run's best epochs in its directory, as timm names them: checkpoint-EPOCH.pth."""

import re
from pathlib import Path

NAME = re.compile(r"checkpoint-(\d+)\.pth")


def name(epoch: int) -> str:
    """Return the name of an epoch's checkpoint; epochs count from 0, as in log.txt."""
    return f"checkpoint-{epoch}.pth"


def find(output_dir: Path) -> dict[int, Path]:
    """Return the files that a run has kept by their epochs, the latest epoch first."""
    named = ((NAME.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*.pth"))
    found = {int(match[1]): path for match, path in named if match}
    return dict(sorted(found.items(), reverse=True))


def best(output_dir: Path, records: list[dict], epoch: int, count: int) -> set[int]:
    """Return the epochs whose checkpoints to keep: of those that are there, and the given one, the best `count`.

    Args:
        output_dir: The run's directory.
        records: The epochs of its log. Of equal top-1, the earlier epoch is the better one.
        epoch: The epoch that has just ended; it counts only if it was evaluated.
        count: How many to keep.
    """
    there = {*find(output_dir), epoch}
    scored = [record for record in records if record["epoch"] in there and "test_acc1" in record]
    ranked = sorted(scored, key=lambda record: record["test_acc1"], reverse=True)  # stable
    return {record["epoch"] for record in ranked[:count]}


def remove(output_dir: Path, epochs: set[int]) -> None:
    """Remove the checkpoints of these epochs."""
    for epoch in epochs:
        (output_dir / name(epoch)).unlink(missing_ok=True)
