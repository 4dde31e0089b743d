"""Read runs, finished or not, from their output directories, or from a file that collects several."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

from training.settings.facts import recorded
from training.settings.settings import Settings

COLUMNS = ("epoch", "train_seconds", "peak_memory_mb", "training_memory_mb")  # of log.txt, which tables need
PLACES = recorded(place=True)  # paths of a run, which mean nothing on another machine
FILES = recorded(file=True)  # files that a run started from; only their names are compared


@dataclass(frozen=True)
class Run:
    """Hold the settings and the log of one training.

    Attributes:
        name: Name of its directory, without the -seedS that tells it from its repetitions.
        settings: Its flags and facts: the entries of args.json.
        epochs: The lines of log.txt, in order.
        source: Its directory, or the file that it was read from.
    """

    name: str
    settings: dict
    epochs: list[dict]
    source: str = ""

    @property
    def machine(self) -> str | None:
        """Return the kind of device that trained it; None if an older version didn't record it."""
        return self.settings.get("hardware")

    @property
    def complete(self) -> bool:
        """Return whether every epoch is done."""
        return bool(self.epochs) and self.epochs[-1]["epoch"] + 1 >= self.settings["last_epoch"]

    @property
    def seconds_per_epoch(self) -> float:
        """Return the mean training time of an epoch, each taken for the median of those with images of its size.

        So a slow moment of the machine doesn't count.
        """
        by_size = defaultdict(list)
        for epoch in self.epochs:
            if "train_seconds" in epoch:
                by_size[epoch.get("image_size")].append(epoch["train_seconds"])
        return mean(median(seconds) for seconds in by_size.values() for _ in seconds)

    def until(self, epoch: int) -> "Run":
        """Return the run without what came after an epoch."""
        return replace(self, epochs=[line for line in self.epochs if line["epoch"] <= epoch])

    def largest(self, column: str) -> float:
        """Return the largest value of a column of the log, over the epochs that have it."""
        return max(epoch[column] for epoch in self.epochs if column in epoch)

    @property
    def evaluated(self) -> list[dict]:
        """Return the epochs that ended with an evaluation."""
        return [epoch for epoch in self.epochs if "test_acc1" in epoch]

    @property
    def mean_tokens(self) -> float:
        """Return the mean number of tokens over the layers and, where images grow, over their sizes.

        Time and memory should follow it.
        """
        stages = self.settings.get("stage_token_counts") or [self.settings["token_counts"]]
        return mean(mean(counts[:-1]) for counts in stages)


class Spread(NamedTuple):
    """Hold a mean over runs, and the standard deviation if there are several."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(mean(values), stdev(values) if len(values) > 1 else None)


def read_log(path: Path) -> list[dict]:
    """Read the epochs of a log.txt, in order; ignore a last line that a crash left half written.

    Raises:
        ValueError: Any other line is not one that Logbook writes, or its epoch is not later than the previous line's.
    """
    lines = path.read_text(errors="replace").splitlines()
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
            epochs.append(epoch | {"epoch": int(epoch["epoch"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not an epoch of a run") from None
        if len(epochs) > 1 and epochs[-1]["epoch"] <= epochs[-2]["epoch"]:
            before, here = (line["epoch"] for line in epochs[-2:])
            raise ValueError(f"{path}: line {number}: epoch {here} after epoch {before}, as where two runs wrote it")
    return epochs


def read_run(directory: Path) -> Run:
    """Read a run's output directory.

    Raises:
        ValueError: The directory holds no run, or one that can't be read.
    """
    try:
        settings = json.loads((directory / "args.json").read_text())
        epochs = read_log(directory / "log.txt")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{directory}: no run to read ({error})") from None
    _check(settings, epochs, directory)
    name = directory.resolve().name.removesuffix(f"-seed{settings.get('seed')}")
    return Run(name, _default_settings() | settings, epochs, str(directory))


@cache
def _default_settings() -> dict:
    """Return every flag's default, for runs that are older than some of the flags."""
    return asdict(Settings())


def _check(settings: object, epochs: object, source: Path) -> None:
    """Check that a run has everything that tables show, with the right types; raise ValueError if not."""
    if not isinstance(settings, dict) or not isinstance(settings.get("fusion_strategy"), str):
        raise ValueError(f"{source}: holds no settings of a run")
    if not _are_counts(settings.get("token_counts")):
        raise ValueError(f"{source}: holds no token_counts")
    stages = settings.get("stage_token_counts") or []
    if not (isinstance(stages, list) and all(map(_are_counts, stages))):
        raise ValueError(f"{source}: its stage_token_counts are no counts of tokens")
    if not _is_number(settings.get("last_epoch")):
        raise ValueError(f"{source}: doesn't say its last_epoch")
    if not (settings.get("flops") is None or _is_number(settings["flops"])):
        raise ValueError(f"{source}: its flops are no number")
    for name in FILES:
        if not isinstance(settings.get(name) or "", str):
            raise ValueError(f"{source}: its {name} names no file")
    if not (isinstance(epochs, list) and all(isinstance(epoch, dict) for epoch in epochs)):
        raise ValueError(f"{source}: holds no epochs of a run")
    if not (_is_shallow(settings) and _is_shallow(epochs)):
        raise ValueError(f"{source}: what it holds is nested deeper than a run's settings and epochs")
    for epoch in epochs:
        wanted = (*COLUMNS, "test_acc1") if "test_acc1" in epoch else COLUMNS
        wanted += ("image_size",) if "image_size" in epoch else ()
        missing = [name for name in wanted if not _is_number(epoch.get(name))]
        if missing or epoch["train_seconds"] <= 0:
            raise ValueError(f"{source}: an epoch has no {missing[0] if missing else 'train_seconds'}")


def _are_counts(value: object) -> bool:
    """Return whether a value holds the lengths of a sequence before and after each layer."""
    return isinstance(value, list) and len(value) > 1 and all(map(_is_number, value)) and min(value) > 0


def _is_number(value: object) -> bool:
    """Return whether a value is a number that a table can show: finite, and below 1e18, which no run reaches."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _is_shallow(value: object, levels: int = 4) -> bool:
    """Return whether nested lists and dictionaries are less than `levels` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in inner)


def find_runs(path: Path) -> list[Run]:
    """Read every run in or below a directory, or in a file written by write_runs.

    Raises:
        ValueError: There is no run, or one of them can't be read.
    """
    if path.is_file():
        return _read_file(path)
    directories = sorted(args.parent for args in path.rglob("args.json"))
    if not directories:
        raise ValueError(f"{path}: no run is there (no args.json in it or below)")
    return [read_run(directory) for directory in directories]


def _read_file(path: Path) -> list[Run]:
    try:
        runs = [(run["name"], run["settings"], run["epochs"]) for run in json.loads(path.read_text())["runs"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of runs ({error!r})") from None
    for name, settings, epochs in runs:
        if not isinstance(name, str):
            raise ValueError(f"{path}: a run has no name")
        _check(settings, epochs, path)
    return [Run(name, _default_settings() | settings, epochs, f"{path} ({name})") for name, settings, epochs in runs]


def write_runs(path: Path, runs: list[Run], about: dict) -> None:
    """Write runs into one file that find_runs can read: the header `about`, all epochs, and all settings but paths."""
    plain = [
        {
            "name": run.name,
            "settings": without(run.settings, PLACES),
            "epochs": run.epochs,
        }
        for run in runs
    ]
    path.write_text(json.dumps(about | {"runs": plain}, indent=1) + "\n")


def without(settings: dict, names: tuple[str, ...]) -> dict:
    """Return the settings except those named; files that a run started from are reduced to their names."""
    files = {name: Path(settings[name]).name for name in FILES if settings.get(name)}
    return {name: value for name, value in (settings | files).items() if name not in names}


def fused(run: Run) -> int:
    """Return how many tokens fuse in all layers together."""
    return run.settings["token_counts"][0] - run.settings["token_counts"][-1]


def strategy(run: Run) -> str:
    """Describe a run's fusion strategy in words, with its layer."""
    if run.settings.get("fusion_plan"):
        return "plan"
    name, layer = run.settings["fusion_strategy"], run.settings.get("fusion_layer")
    where = {"upper": f" from {layer}", "lower": f" below {layer}"} if layer is not None else {}
    return name + where.get(name, "")
