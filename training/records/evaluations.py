"""Show evaluations of trained models under plans of fusion: as a table, as CSV, and drawn against their cost.

An evaluation is a row, a dictionary: checkpoint, plan, series (what the plan has in common with the same strategy's of
other amounts), fused, left, mega_macs, cost (share of the multiply-adds without fusion), acc1, acc5, kept_mib, batch,
and seconds, a pair for each round: a batch, one image.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion.pictures import PALETTE
from training.records.tables import comma_separated

KEPT_BY_TRAINING = ("checkpoint", "best_checkpoint")  # names of files that don't tell runs apart
MARKERS = "osD^vP"
COLUMNS = ("checkpoint", "model", "plan", "fused", "left", "mega_macs", "cost", "acc1", "acc5", "loss", "kept_mib")
WIDE = 3  # largest cost against the least from which costs are drawn on a logarithmic axis


def short_names(files: Sequence[str]) -> list[str]:
    """Return a name for each checkpoint: its directory's or its own, or all of its path if two would be alike."""
    paths = [Path(file) for file in files]
    names = [path.resolve().parent.name if path.stem in KEPT_BY_TRAINING else path.stem for path in paths]
    return [name if names.count(name) == 1 else file for name, file in zip(names, files, strict=True)]


def timed(row: dict) -> dict[str, float]:
    """Return an evaluation's images_per_second and latency_ms, medians over its rounds; nothing if it has none."""
    if not row["seconds"]:
        return {}
    batch, one = (median(seconds) for seconds in zip(*row["seconds"], strict=True))
    return {"images_per_second": row["batch"] / batch, "latency_ms": 1000 * one}


def cells(rows: list[dict]) -> list[dict[str, str]]:
    """Return each evaluation's cells by column; "x faster" compares with no fusion of the same checkpoint."""
    several = len({row["checkpoint"] for row in rows}) > 1
    plain = {row["checkpoint"]: timed(row) for row in rows if not row["fused"]}
    table = []
    for row in rows:
        times, of_plain = timed(row), plain.get(row["checkpoint"])
        found = {"checkpoint": row["checkpoint"]} if several else {}
        found |= {
            "plan": row["plan"],
            "fused": str(row["fused"]),
            "left": str(row["left"]),
            "M mult-adds": f"{row['mega_macs']:.1f}",
            "cost": f"{row['cost']:.3f}",
            "top-1 %": f"{row['acc1']:.2f}",
            "top-5 %": f"{row['acc5']:.2f}",
        }
        if times:
            faster = times["images_per_second"] / of_plain["images_per_second"] if of_plain else None
            found |= {
                "images/s": f"{times['images_per_second']:.0f}",
                "x faster": "" if faster is None else f"{faster:.2f}",
                "ms an image": f"{times['latency_ms']:.2f}",
            }
        table.append(found | {"kept MiB": f"{row['kept_mib']:.1f}"})
    return table


def write(output_dir: Path, rows: list[dict]) -> None:
    """Write the evaluations, unrounded, as evaluation.csv, and draw them into evaluation.png."""
    lines = [{name: row[name] for name in COLUMNS} | timed(row) for row in rows]
    (output_dir / "evaluation.csv").write_text(comma_separated(lines) + "\n")
    draw(rows).savefig(output_dir / "evaluation.png", dpi=150)


def draw(rows: list[dict]) -> Figure:
    """Draw accuracy against multiply-adds, speed if it was timed, and kept memory.

    A line is one checkpoint under one strategy; it starts at the same checkpoint without fusion.
    """
    drawn = [row | timed(row) for row in rows]
    costs = {"mega_macs": "million multiply-adds of an image", "images_per_second": "images per second"}
    costs["kept_mib"] = "memory kept for a backward pass, MiB"
    panels = {name: label for name, label in costs.items() if name in drawn[0]}
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        _draw_lines(axis, drawn, column)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("top-1, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_lines(axis: Axes, rows: list[dict], column: str) -> None:
    checkpoints, series = (list(dict.fromkeys(row[name] for row in rows)) for name in ("checkpoint", "series"))
    coloured = [name for name in series if name != "no"]
    if max(row[column] for row in rows) > WIDE * min(row[column] for row in rows):
        axis.set_xscale("log")
    for checkpoint, name in dict.fromkeys((row["checkpoint"], row["series"]) for row in rows):
        points = [row for row in rows if row["checkpoint"] == checkpoint and row["series"] in (name, "no")]
        number = coloured.index(name) if len(coloured) > 1 and name != "no" else checkpoints.index(checkpoint)
        sign = checkpoints.index(checkpoint) if len(checkpoints) > 1 else series.index(name)
        style = {"color": "black" if name == "no" else PALETTE[number % len(PALETTE)]}
        style |= {"marker": MARKERS[sign % len(MARKERS)], "markersize": 5, "zorder": 3 if name == "no" else 2}
        label = "no fusion" if name == "no" else name
        label = label if len(checkpoints) == 1 else f"{checkpoint}, {label}"
        points.sort(key=lambda row: row[column])
        axis.plot([row[column] for row in points], [row["acc1"] for row in points], label=label, **style)
