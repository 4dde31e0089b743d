"""Measure how many training images a second are read, augmented and batched, which bounds the speed of any training.

    python scripts/bench_data.py --data-set CIFAR --data-path ./datasets --input-size 224 --batch-size 128
    python scripts/bench_data.py --data-set FOLDER --data-path ./photos --input-size 224 --json results/bench_data.json

Takes a command line of main.py and loads as it would, without training: first in the process itself, then with one
loading process more each time, up to --num_workers or the number of cores. Compare with images_per_second in a log.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import torch
from torch.utils.data import DataLoader

import datasets
from main import check_names
from training.build.data import build_data
from training.build.model import build_model, with_image_size
from training.data.loaders import train_loader, usable_workers
from training.runtime.distributed import World
from training.runtime.machine import device_name, versions
from training.settings.command_line import parse_args
from training.settings.failure import in_one_line
from training.settings.flag import flag
from training.settings.kinds import above_zero
from training.settings.parser import Parser
from training.settings.settings import Settings

PROGRAM = "bench_data.py"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Settings):
    """Hold the settings of bench_data.py: its own and those of main.py."""

    TITLE: ClassVar[str | None] = "benchmark"

    seconds: float = flag(20, "how long to load with each number of processes", above_zero, metavar="S")
    json: str | None = flag(None, "also write the figures here", metavar="FILE")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(BenchmarkSettings, PROGRAM, __doc__.splitlines()[0])
    # --eval would leave the training images out, --train-img-sizes load smaller ones.
    settings = replace(parse_args(argv, parser), eval=False, train_img_sizes=None)
    world = World(torch.device("cpu"), 0, 1)
    with in_one_line(program=PROGRAM):
        check_names(settings)
        datasets.check_indexed(settings)
        settings = with_image_size(settings, build_model(settings))
        dataset = build_data(settings, world).train

    machine = device_name(world.device)
    print(
        f"{settings.data_set}, {len(dataset):,} images to {settings.input_size}, batch {settings.batch_size}, {machine}"
    )
    print("\n| loading processes | images/s |\n| --- | --- |")
    rates = {}
    for workers in range(usable_workers(settings.num_workers) + 1):
        loader = train_loader(dataset, replace(settings, num_workers=workers), world)
        rates[workers] = images_per_second(loader, settings.seconds)
        print(f"| {workers or 'none'} | {rates[workers]:.0f} |", flush=True)
    if settings.json:
        write(Path(settings.json), settings, rates, machine)


def images_per_second(loader: DataLoader, seconds: float) -> float:
    """Measure the rate over `seconds` seconds, after each process has given a batch."""
    batches = endless(loader)
    for _ in range(loader.num_workers + 1):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[1])
    return images / (time.perf_counter() - start)


def endless(loader: DataLoader) -> Iterator:
    """Yield the batches of epoch after epoch."""
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def write(path: Path, settings: Settings, rates: dict[int, float], machine: str) -> None:
    """Write the rates with what they depend on."""
    names = ("data_set", "input_size", "in_chans", "batch_size", "no_aug", "aa", "ThreeAugment", "src", "reprob")
    figures = {name: getattr(settings, name) for name in names} | {"device": machine, "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures | {"images_per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
