"""Print a table of runs: what each fused, how well it classifies, and the time and memory that its training took.

    python scripts/summarize.py output/fmnist_cpu                     # every run below a directory
    python scripts/summarize.py output/fmnist_cpu --plot curves.png --save runs.json
    python scripts/summarize.py runs.json --format latex

Runs that differ in nothing but the seed are one row, mean ± standard deviation. Seconds are those of training an epoch:
the median of a run's epochs, so that a slow moment of the machine doesn't count; memory is the largest of any epoch.
"x time" and "x memory" compare with the run of the same seed that fuses nothing; "x tokens", the mean number of tokens
in a layer against that run's, is what they should be. A row of "2 of 3" epochs is not finished.
"""

import argparse
import csv
import io
import sys
from datetime import timedelta
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from fusion.pictures import PALETTE
from training.results import Run, Spread, baseline, by_experiment, find_runs, fused, strategy, write_runs

PLACES = {"top-1 %": 2, "best top-1 %": 2, "s / epoch": 1, "x time": 2, "x memory": 2, "x tokens": 2}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="PATH", help="output directories, or files of --save")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="how to print the table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against time, memory and epochs")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all that was logged into one JSON file")
    parser.add_argument("--command", metavar="TEXT", default="", help="what made the runs, for --save to say")
    args = parser.parse_args(argv)
    try:
        runs = [run for path in args.runs for run in find_runs(path)]
        experiments = by_experiment(runs)
        print(FORMATS[args.format]([row(experiment, experiments) for experiment in experiments]))
        if args.plot:
            draw(experiments).savefig(args.plot, dpi=150)
        if args.save:
            write_runs(args.save, runs, {"command": args.command})
    except (ValueError, OSError) as error:
        sys.exit(f"summarize.py: error: {error}")


def row(runs: list[Run], experiments: list[list[Run]]) -> dict[str, str]:
    """An experiment's cells by column; empty where no epoch is done, or no run without fusion is there to compare."""
    first, plain = runs[0], baseline(runs, experiments)
    counts, flops = first.settings["token_counts"], first.settings.get("flops")
    cells = {
        "run": first.name,
        "strategy": strategy(first),
        "fused": str(fused(first)),
        "seeds": str(len(runs)),
        "epochs": f"{len(first.epochs)} of {first.settings['last_epoch']}",
        **dict.fromkeys(("best top-1 %", "top-1 %", "s / epoch", "x time", "total", "training MB", "x memory"), ""),
        "peak MB": "",
        "M mult-adds": f"{flops / 1e6:.0f}" if flops else "",
        "x tokens": "",
        "tokens at the end": f"{counts[-1]} of {counts[0]}",
    }
    if plain:
        cells["x tokens"] = f"{first.mean_tokens / plain[0].mean_tokens:.2f}"
    if first.epochs:
        measured = measurements(runs, plain)
        cells |= {name: spread(values, PLACES.get(name, 0)) for name, values in measured.items()}
        seconds = sum(epoch["train_seconds"] for run in runs for epoch in run.epochs) / len(runs)
        cells["total"] = str(timedelta(seconds=round(seconds)))
    return cells


def measurements(runs: list[Run], plain: list[Run] | None) -> dict[str, list[float]]:
    """Each measured column's value of every run; ratios are to the run that fuses nothing of the same seed."""
    found = {
        "best top-1 %": [run.largest("test_acc1") for run in runs],
        "top-1 %": [run.epochs[-1]["test_acc1"] for run in runs],
        "s / epoch": [run.seconds_per_epoch for run in runs],
        "training MB": [run.largest("training_memory_mb") for run in runs],
        "peak MB": [run.largest("peak_memory_mb") for run in runs],
    }
    if plain:
        pairs = [(run, same_seed(run, plain)) for run in runs]
        found["x time"] = [run.seconds_per_epoch / other.seconds_per_epoch for run, other in pairs]
        if all(other.largest("training_memory_mb") for _, other in pairs):  # 0 where the system can't reset its peak
            found["x memory"] = [
                run.largest("training_memory_mb") / other.largest("training_memory_mb") for run, other in pairs
            ]
    return found


def same_seed(run: Run, among: list[Run]) -> Run:
    """The one of the same seed, which most likely ran on the same day and revision; the first if there is none."""
    return next((other for other in among if other.settings.get("seed") == run.settings.get("seed")), among[0])


def spread(values: list[float], places: int) -> str:
    """The mean of the values, ± their standard deviation where there are several."""
    found = Spread.of(values)
    around = "" if found.deviation is None else f" ± {found.deviation:.{places}f}"
    return f"{found.mean:.{places}f}{around}"


def markdown(rows: list[dict[str, str]]) -> str:
    """A table for a README, columns aligned."""
    lines = [list(rows[0]), *(list(cells.values()) for cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def comma_separated(rows: list[dict[str, str]]) -> str:
    """The table for a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def latex(rows: list[dict[str, str]]) -> str:
    """The table for a paper, with the rules of the package booktabs."""
    signs = str.maketrans({"%": r"\%", "_": r"\_", "±": r"$\pm$", "&": r"\&", "#": r"\#"})

    def line(cells) -> str:
        return " & ".join(cell.translate(signs) for cell in cells) + r" \\"

    head = rf"\begin{{tabular}}{{{'l' * 2 + 'r' * (len(rows[0]) - 2)}}}"
    body = "\n".join(line(cells.values()) for cells in rows)
    return "\n".join([head, r"\toprule", line(rows[0]), r"\midrule", body, r"\bottomrule", r"\end{tabular}"])


FORMATS = {"markdown": markdown, "csv": comma_separated, "latex": latex}


def draw(experiments: list[list[Run]]) -> Figure:
    """Accuracy against time and memory, and accuracy and memory of every epoch; a colour for each experiment."""
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    for number, runs in enumerate(group for group in experiments if group[0].epochs):
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "osD^vP"[number % 6], "markersize": 5}
        _draw_experiment(axes, runs, style)
    labels = (
        ("training, s / epoch", "top-1 after the last epoch, %"),
        ("memory of training, MB", "top-1 after the last epoch, %"),
        ("epoch", "top-1, %"),
        ("epoch", "peak memory, MB"),
    )
    for axis, (x, y) in zip(axes.flat, labels, strict=True):
        axis.set(xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=x == "epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
    return figure


def _draw_experiment(axes: list[list[Axes]], runs: list[Run], style: dict) -> None:
    unfinished = "" if runs[0].complete else f" ({len(runs[0].epochs)} of {runs[0].settings['last_epoch']} epochs)"
    label = f"{runs[0].name}, {fused(runs[0])} fused{unfinished}"
    acc1 = [run.epochs[-1]["test_acc1"] for run in runs]
    axes[0][0].plot([run.seconds_per_epoch for run in runs], acc1, linestyle="", label=label, **style)
    axes[0][1].plot([run.largest("training_memory_mb") for run in runs], acc1, linestyle="", **style)
    for axis, column in zip(axes[1], ("test_acc1", "peak_memory_mb"), strict=True):
        for run in runs:
            epochs = [epoch["epoch"] + 1 for epoch in run.epochs]
            axis.plot(epochs, [epoch[column] for epoch in run.epochs], linewidth=1, **style)


if __name__ == "__main__":
    main()
