"""Print a table of runs from their args.json and log.txt.

    python scripts/summarize.py output/demo/plain output/demo/upper

Seconds and memory are those of training an epoch: the median of all epochs, so that a slow moment of the machine
doesn't count, and the largest peak.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.logbook import read_log

COLUMNS = ("run", "strategy", "epochs", "top-1 %", "s / epoch", "peak MB", "training MB", "tokens at the end")


def summarize(run: Path) -> tuple[str, ...]:
    """One row of the table for one output directory; ValueError if no epoch is finished there."""
    try:
        settings = json.loads((run / "args.json").read_text())
        epochs = read_log(run / "log.txt")
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: no run to read ({error})") from None
    if not epochs:
        raise ValueError(f"{run}: no epoch is finished yet")
    return (
        run.name,
        "plan" if settings.get("fusion_plan") else settings["fusion_strategy"],
        f"{len(epochs)} of {settings['last_epoch']}",
        f"{epochs[-1]['test_acc1']:.2f}",
        f"{median(epoch['train_seconds'] for epoch in epochs):.1f}",
        f"{max(epoch['peak_memory_mb'] for epoch in epochs):.0f}",
        f"{max(epoch['training_memory_mb'] for epoch in epochs):.0f}",
        f"{settings['token_counts'][-1]} of {settings['token_counts'][0]}",
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows under COLUMNS as Markdown, columns aligned."""
    widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [COLUMNS, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output directories")
    try:
        print(table([summarize(run) for run in parser.parse_args().runs]))
    except ValueError as error:
        sys.exit(f"summarize.py: error: {error}")


if __name__ == "__main__":
    main()
