"""Print a table of runs: what each fused, how well it classifies, and the time and memory that its training took.

    python scripts/summarize.py output/fmnist_cpu                     # every run below a directory
    python scripts/summarize.py output/fmnist_cpu --plot curves.png --save runs.json
    python scripts/summarize.py runs.json --format latex --columns "run,top-1 %,training MB,x memory"
    python scripts/summarize.py runs.json --format csv > runs.csv     # all columns

Runs that differ in nothing but the seed are one row, mean ± standard deviation, called by what their directories' names
have in common; if several machines trained them, it has no seconds and megabytes. Seconds are those of training an
epoch: the median of a run's epochs, so that a slow moment of the machine doesn't count, or where images grow, the mean
over the epochs of the medians for their sizes; memory is the largest of any epoch. "x time" and "x memory" compare with
the same epochs of the run of the same seed and machine that fuses nothing, and are left out if there is none;
"x tokens", the mean number of tokens in a layer against that run's, is what both should be if time and memory followed
the tokens. A row of "2 of 3" epochs is not finished.
"""

import argparse
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from fusion.pictures import PALETTE
from training.records.experiments import baseline, by_experiment, common_name
from training.records.runs import Run, Spread, find_runs, fused, strategy, write_runs
from training.records.tables import FORMATS
from training.settings.failure import check_known

COLUMNS = (
    *("run", "strategy", "fused", "seeds", "epochs", "best top-1 %", "top-1 %", "s / epoch", "x time", "total"),
    *("training MB", "x memory", "peak MB", "M mult-adds", "x tokens", "tokens at the end"),
)
SHOWN = ("run", "strategy", "fused", "epochs", "top-1 %", "s / epoch", "x time", "x memory")  # as many as fit on a page
LEGEND_SIGNS = 130  # signs that fit in a legend line as wide as the figure
PLACES = {"top-1 %": 2, "best top-1 %": 2, "s / epoch": 1, "x time": 2, "x memory": 2, "x tokens": 2}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="PATH", help="output directories, or files of --save")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="how to print the table")
    parser.add_argument(
        "--columns",
        metavar="NAME,...",
        help=f"what to show: all, or some of {', '.join(COLUMNS).replace('%', '%%')}; if not given, all in csv, else "
        f"{', '.join(SHOWN).replace('%', '%%')}",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against time, memory and epochs")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all that was logged into one JSON file")
    parser.add_argument("--command", metavar="TEXT", default="", help="what made the runs, for --save to say")
    args = parser.parse_args(argv)
    try:
        columns = chosen_columns(args.columns or ("all" if args.format == "csv" else ",".join(SHOWN)))
        runs = [run for path in args.runs for run in find_runs(path)]
        experiments, notes = by_experiment(runs)
        if {"x time", "x memory"} & set(columns):
            notes += [note for experiment in experiments for note in unpaired(experiment, experiments)]
        rows = [row(experiment, experiments) for experiment in experiments]
        print(FORMATS[args.format]([{name: cells[name] for name in columns} for cells in rows]))
        for note in notes:
            print(f"summarize.py: {note}", file=sys.stderr)
        if args.plot:
            draw(experiments).savefig(args.plot, dpi=150)
        if args.save:
            write_runs(args.save, runs, {"command": args.command})
    except (ValueError, OSError) as error:
        sys.exit(f"summarize.py: error: {error}")


def chosen_columns(text: str) -> list[str]:
    """Return the columns that --columns names, in its order; raise ValueError if a name is unknown."""
    names = list(COLUMNS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        check_known("--columns", name, COLUMNS)
    return names


def row(runs: list[Run], experiments: list[list[Run]]) -> dict[str, str]:
    """Return an experiment's cells by column; empty without a finished epoch, or a run without fusion to compare."""
    first, plain = runs[0], baseline(runs, experiments)
    counts, flops = first.settings["token_counts"], first.settings.get("flops")
    cells = dict.fromkeys(COLUMNS, "") | {
        "run": common_name(runs),
        "strategy": strategy(first),
        "fused": str(fused(first)),
        "seeds": str(len(runs)),
        "epochs": f"{len(first.epochs)} of {first.settings['last_epoch']}",
        "M mult-adds": f"{flops / 1e6:.0f}" if flops else "",
        "tokens at the end": f"{counts[-1]} of {counts[0]}",
    }
    if plain:
        cells["x tokens"] = f"{first.mean_tokens / plain[0].mean_tokens:.2f}"
    if first.epochs:
        measured = measurements(runs, plain)
        cells |= {name: spread(values, PLACES.get(name, 0)) for name, values in measured.items()}
        if "s / epoch" in measured:
            seconds = sum(epoch["train_seconds"] for run in runs for epoch in run.epochs) / len(runs)
            cells["total"] = str(timedelta(seconds=round(seconds)))
    return cells


def measurements(runs: list[Run], plain: list[Run] | None) -> dict[str, list[float]]:
    """Return each measured column's values, one for each run.

    Seconds and memory of several machines have no mean. Ratios are to the run of the same seed and machine without
    fusion, and to no more of it than the run itself has done.
    """
    found = {}
    if len({run.machine for run in runs}) == 1:
        found["s / epoch"] = [run.seconds_per_epoch for run in runs]
        found["training MB"] = [run.largest("training_memory_mb") for run in runs]
        found["peak MB"] = [run.largest("peak_memory_mb") for run in runs]
    if all(run.evaluated for run in runs):
        found["best top-1 %"] = [run.largest("test_acc1") for run in runs]
        found["top-1 %"] = [run.evaluated[-1]["test_acc1"] for run in runs]
    others = [same_seed(run, plain or []) for run in runs]
    if all(others):
        pairs = [(run, other.until(run.epochs[-1]["epoch"])) for run, other in zip(runs, others, strict=True)]
        found["x time"] = [run.seconds_per_epoch / other.seconds_per_epoch for run, other in pairs]
        if all(other.largest("training_memory_mb") for _, other in pairs):  # 0 where the system can't reset its peak
            found["x memory"] = [
                run.largest("training_memory_mb") / other.largest("training_memory_mb") for run, other in pairs
            ]
    return found


def same_seed(run: Run, among: list[Run]) -> Run | None:
    """Return the machine's run of the same seed, most likely of the same day and revision; None without one."""
    alike = (run.settings.get("seed"), run.machine)
    return next((other for other in among if (other.settings.get("seed"), other.machine) == alike), None)


def unpaired(runs: list[Run], experiments: list[list[Run]]) -> list[str]:
    """Make a line for each run that leaves its row without "x time": no run without fusion has its seed and machine."""
    plain = baseline(runs, experiments)
    return [
        f"{run.source}: no x time and x memory, since no run without fusion has its seed, {run.settings.get('seed')}, "
        "on its machine"
        for run in runs
        if plain and run.epochs and not same_seed(run, plain)
    ]


def spread(values: list[float], places: int) -> str:
    """Format the mean of the values, ± their standard deviation if there are several."""
    found = Spread.of(values)
    around = "" if found.deviation is None else f" ± {found.deviation:.{places}f}"
    return f"{found.mean:.{places}f}{around}"


def draw(experiments: list[list[Run]]) -> Figure:
    """Draw accuracy against time and memory, and both by epoch; one colour for each experiment."""
    drawn = [group for group in experiments if group[0].epochs]
    names = [_label(runs) for runs in drawn]
    columns = max(1, min(6, LEGEND_SIGNS // (max(map(len, names), default=0) + 6)))
    figure = Figure(figsize=(9.6, 6.2 + 0.2 * -(-len(drawn) // columns)), layout="constrained")
    axes = figure.subplots(2, 2)
    for number, runs in enumerate(drawn):
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
    if drawn:
        handles, _ = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=columns, fontsize=9)
    return figure


def _label(runs: list[Run]) -> str:
    """Return the legend's name of an experiment."""
    first = runs[0]
    unfinished = "" if first.complete else f" ({len(first.epochs)} of {first.settings['last_epoch']} epochs)"
    label = textwrap.shorten(f"{common_name(runs)}, {fused(first)} fused{unfinished}", LEGEND_SIGNS - 6)
    return label.replace("$", r"\$")  # a plain $ would begin a formula


def _draw_experiment(axes: list[list[Axes]], runs: list[Run], style: dict) -> None:
    tested = [run for run in runs if run.evaluated]
    acc1 = [run.evaluated[-1]["test_acc1"] for run in tested]
    axes[0][0].plot([run.seconds_per_epoch for run in tested], acc1, linestyle="", label="run", **style)
    axes[0][1].plot([run.largest("training_memory_mb") for run in tested], acc1, linestyle="", **style)
    for axis, column in zip(axes[1], ("test_acc1", "peak_memory_mb"), strict=True):
        for run in runs:
            epochs = [epoch for epoch in run.epochs if column in epoch]
            places, values = [epoch["epoch"] + 1 for epoch in epochs], [epoch[column] for epoch in epochs]
            axis.plot(places, values, linewidth=1, **style)


if __name__ == "__main__":
    main()
