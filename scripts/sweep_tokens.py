"""Fuse a trained model's tokens without training it: accuracy, speed and memory for strategies and budgets.

    python scripts/sweep_tokens.py --resume output/checkpoint.pth --strategies all upper:6 --budgets 16 32 48

A budget is the number of tokens to fuse in all layers together. Prints a table; with --output_dir also writes it as
sweep.json and sweep.csv, and as curves, sweep.png. Model and data are those of the checkpoint's run unless flags say
otherwise. Speed and memory are those of forward passes over images that are in memory already.
"""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.threads import prepare_threads

if __name__ == "__main__":
    prepare_threads()

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Subset

import datasets
import fusion
import ssm
from engine import evaluate
from fusion.pictures import PALETTE
from models_mamba import VisionMamba
from training.build.model import with_image_size
from training.build.weights import restore
from training.runtime.distributed import World, init_world
from training.runtime.machine import device_name, versions
from training.runtime.memory import PeakMemory
from training.settings.checkpoint import CheckpointSettings
from training.settings.failure import in_one_line
from training.settings.flag import flag
from training.settings.images import DataSettings
from training.settings.kinds import path, positive
from training.settings.model import FusionMethodSettings
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.state import checkpoint

PROGRAM = "sweep_tokens.py"
COLUMNS = ("strategy", "fused", "left", "mega_macs", "acc1", "images_per_second", "memory_mb")


@dataclass(frozen=True, kw_only=True)
class SweepChoices:
    """Choose what is swept, and how it is measured."""

    TITLE: ClassVar[str | None] = "sweep"

    budgets: Sequence[int] = flag(..., "tokens to fuse in all layers together", positive, nargs="+", metavar="N")
    strategies: Sequence[str] = flag(
        ("all",),
        "all, interleaved, lower:K or upper:K; fusing none is always measured",
        nargs="+",
        metavar="NAME[:K]",
    )
    images: int = flag(5000, "test images, spread over the data set", positive, metavar="N")
    eval_batch_size: int = flag(64, "images in a forward pass", positive, metavar="N")
    rounds: int = flag(3, "times that all are measured in turn; the median counts", positive, metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME")
    output_dir: str | None = flag(
        None, "where sweep.json, sweep.csv and sweep.png go", path, spelling="--output_dir", metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class SweepSettings(DataSettings, FusionMethodSettings, SweepChoices, CheckpointSettings):
    """Hold the settings of sweep_tokens.py."""


def get_args_parser() -> Parser:
    """Make the parser of sweep_tokens.py."""
    return Parser(SweepSettings, PROGRAM, __doc__.splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    with in_one_line(program=PROGRAM):
        saved = checkpoint.load(parser.read(argv).resume)
        # The sweep replaces the run's own fusion.
        run = {name: value for name, value in saved.get("settings", {}).items() if not name.startswith("fusion_")}
        settings = parse_over(parser, argv, run)
        datasets.check_indexed(settings)
        world = init_world(settings.device)
        model = restore(settings, saved).to(world.device)
        settings = with_image_size(settings, model)
        contenders, misfits = build_contenders(settings, model)
        batches = load_images(settings, saved.get("classes"))
        if settings.output_dir:
            Path(settings.output_dir).mkdir(parents=True, exist_ok=True)

    images = sum(len(labels) for _, labels in batches)
    print(
        f"{settings.model}, {settings.data_set}, {images} test images, batch {settings.eval_batch_size}, "
        f"{device_name(world.device)}, {ssm.pick(world.device.type).name} scan"
    )
    for note in misfits:
        print(f"left out: {note}")
    rows = measure(contenders, model, batches, world, settings.rounds)
    print_table(rows)
    if settings.output_dir:
        write(rows, Path(settings.output_dir), settings, world, images)


def build_contenders(settings: SweepSettings, model: VisionMamba) -> tuple[list[tuple], list[str]]:
    """Build every strategy at every budget that fits the model, fusing none first; and say what doesn't fit, and why.

    Returns:
        (strategy, plan, method) of each, and a line about each misfit.

    Raises:
        ValueError: A strategy is unknown, or a choice of the method has no effect.
    """
    depth, method = (
        len(model.layers),
        fusion.Method(**{name: getattr(settings, f"fusion_{name}") for name in fusion.CHOICES}),
    )
    contenders, misfits = [("no", (0,) * depth, method)], []
    for text in settings.strategies:
        name, _, layer = text.partition(":")
        if layer and not layer.isdigit():
            raise ValueError(f"--strategies {text}: must be NAME or NAME:K, K a layer")
        for budget in settings.budgets:
            try:
                plan = fusion.plan(name, depth, int(layer) if layer else None, total=budget)
            except ValueError as error:
                hint = "" if layer else f" (as {name}:K)" if name in ("lower", "upper") else ""
                raise ValueError(f"--strategies {text}: {error}{hint}") from None
            try:
                fusion.inject(model, plan, method)
                contenders.append((text, plan, method))
            except ValueError as error:
                misfits.append(f"{text}, {budget} tokens: {error}")
    return contenders, misfits


def load_images(settings: SweepSettings, classes: list[str] | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Load the test images, in batches."""
    test_set, _ = datasets.build_dataset(False, settings, classes)
    spread = torch.linspace(0, len(test_set) - 1, min(settings.images, len(test_set))).long().tolist()
    return list(DataLoader(Subset(test_set, spread), settings.eval_batch_size))


def measure(contenders: list[tuple], model: VisionMamba, batches: list, world: World, rounds: int) -> list[dict]:
    """Measure each contender's accuracy, speed and memory: medians over rounds in which all take turns."""
    images = sum(len(labels) for _, labels in batches)
    memory = PeakMemory(world.device)
    evaluate(model, batches[:2], world)  # warms up
    found = [[] for _ in contenders]
    for turn in range(rounds):
        for (strategy, plan, method), results in zip(contenders, found, strict=True):
            fusion.inject(model, plan, method)
            memory.start_training()
            memory.reset()
            label = f"round {turn + 1}/{rounds}, {strategy} {sum(plan)}"
            scores = evaluate(model, batches, world, label=label)
            results.append((scores["acc1"], images / scores["seconds"], memory.training_mb()))
    rows = []
    for (strategy, plan, method), results in zip(contenders, found, strict=True):
        fusion.inject(model, plan, method)
        acc1, speed, mb = (median(values) for values in zip(*results, strict=True))
        left = model.pos_embed.shape[1] - sum(plan)
        values = (strategy, sum(plan), left, fusion.flops(model) / 1e6, acc1, speed, mb)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def print_table(rows: list[dict]) -> None:
    print(
        "\n| strategy | tokens fused | left | million multiply-adds | top-1 % | images/s | times faster | memory MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = row["images_per_second"]
        print(
            f"| {row['strategy']} | {row['fused']} | {row['left']} | {row['mega_macs']:.0f} | {row['acc1']:.2f} "
            f"| {speed:.0f} | {speed / rows[0]['images_per_second']:.2f} | {row['memory_mb']:.0f} |"
        )


def write(rows: list[dict], output_dir: Path, settings: SweepSettings, world: World, images: int) -> None:
    """Write the rows as JSON with all that they depend on, as CSV, and as curves."""
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "model": settings.model,
        "data_set": settings.data_set,
        "images": images,
        "device": device_name(world.device),
        "versions": versions(),
    }
    (output_dir / "sweep.json").write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
    with open(output_dir / "sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows).savefig(output_dir / "sweep.png", dpi=150)


def draw(rows: list[dict]) -> Figure:
    """Draw accuracy against tokens fused and against speed; a line for each strategy, starting at no fusion."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, label in zip(
        axes, ("fused", "images_per_second"), ("tokens fused in all layers", "images per second"), strict=True
    ):
        _draw_curves(axis, rows, column)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1, %")
    axes[0].legend()
    return figure


def _draw_curves(axis: Axes, rows: list[dict], column: str) -> None:
    plain, *fused = rows
    for number, strategy in enumerate(dict.fromkeys(row["strategy"] for row in fused)):
        points = [plain, *(row for row in fused if row["strategy"] == strategy)]
        xs, ys = [row[column] for row in points], [row["acc1"] for row in points]
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "osD^vP"[number % 6], "markersize": 4}
        axis.plot(xs, ys, label=strategy, **style)
    axis.plot(plain[column], plain["acc1"], "k*", markersize=9, label="no fusion")


if __name__ == "__main__":
    main()
