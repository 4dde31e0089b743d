"""Finished and unfinished runs, read back from what they left, and what repeated runs come to over their seeds."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

from training.options import get_args_parser

COLUMNS = (
    "epoch",
    "test_acc1",
    "train_seconds",
    "peak_memory_mb",
    "training_memory_mb",
)  # of log.txt, that tables need
PATHS = ("output_dir", "data_path", "config", "resume", "weights")  # where a run was, which no other machine has
# What else may differ between the seeds of one experiment: how it was started, watched and loaded, and on what day.
NOT_COMPARED = (
    *PATHS,
    "seed",
    "auto_resume",
    "resume_anyway",
    "start_epoch",
    "save_steps",
    "download",
    "num_workers",
    "pin_mem",
    "device",
    "world_size",
    "dist_url",
    "local_rank",
    "log_images",
    "log_wandb",
    "wandb_project",
    "versions",
    "date",
)

# What must be alike for a run's time and memory to be compared with those of another one.
COMPARABLE = (
    "model",
    "input_size",
    "in_chans",
    "data_set",
    "epochs",
    "batch_size",
    "grad_accum_steps",
    "processes",
    "hardware",
    "amp",
    "amp_dtype",
    "scan_backend",
    "scan_recompute",
    "grad_checkpointing",
    "compile",
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: That of its directory, without the -seedS that tells it from its repetitions.
        settings: Its flags and what followed from them: the entries of args.json.
        epochs: The lines of log.txt, in order.
    """

    name: str
    settings: dict
    epochs: list[dict]

    @property
    def complete(self) -> bool:
        """Whether every epoch is done."""
        return bool(self.epochs) and self.epochs[-1]["epoch"] + 1 >= self.settings["last_epoch"]

    @property
    def seconds_per_epoch(self) -> float:
        """Median time to train one, so that a slow moment of the machine doesn't count."""
        return median(epoch["train_seconds"] for epoch in self.epochs)

    def largest(self, column: str) -> float:
        """The largest value of a column of the log."""
        return max(epoch[column] for epoch in self.epochs)

    @property
    def mean_tokens(self) -> float:
        """Tokens in a layer, on the mean of the layers: what time and memory should follow."""
        return mean(self.settings["token_counts"][:-1])


class Spread(NamedTuple):
    """A mean over runs, and their standard deviation where there are several."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(mean(values), stdev(values) if len(values) > 1 else None)


def read_log(path: Path) -> list[dict]:
    """The epochs of a log.txt, in order; a last line that a crash left half written is none.

    Raises:
        ValueError: Another line is not what Logbook writes.
    """
    lines = path.read_text(errors="replace").splitlines()
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
            epochs.append(epoch | {"epoch": int(epoch["epoch"])})
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is no epoch of a run") from None
    return epochs


def read_run(directory: Path) -> Run:
    """Read a run's output directory.

    Raises:
        ValueError: It holds no run, or one that can't be read.
    """
    try:
        settings = json.loads((directory / "args.json").read_text())
        epochs = read_log(directory / "log.txt")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory}: no run to read ({error})") from None
    _check(settings, epochs, directory)
    name = directory.resolve().name.removesuffix(f"-seed{settings.get('seed')}")
    return Run(name, _default_settings() | settings, epochs)


@cache
def _default_settings() -> dict:
    """What flags that are newer than a run would have been in it."""
    return vars(get_args_parser().parse_args([]))


def _check(settings: object, epochs: object, source: Path) -> None:
    """See that all is there that a table shows; ValueError where it is not."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float)

    if not isinstance(settings, dict) or not isinstance(settings.get("fusion_strategy"), str):
        raise ValueError(f"{source}: holds no settings of a run")
    counts = settings.get("token_counts")
    if not (isinstance(counts, list) and len(counts) > 1 and all(map(is_number, counts)) and min(counts) > 0):
        raise ValueError(f"{source}: holds no token_counts")
    if not is_number(settings.get("last_epoch")):
        raise ValueError(f"{source}: doesn't say its last_epoch")
    if not (isinstance(epochs, list) and all(isinstance(epoch, dict) for epoch in epochs)):
        raise ValueError(f"{source}: holds no epochs of a run")
    for epoch in epochs:
        missing = [name for name in COLUMNS if not is_number(epoch.get(name))]
        if missing:
            raise ValueError(f"{source}: an epoch has no {missing[0]}")


def find_runs(path: Path) -> list[Run]:
    """Every run in a directory or below it, or in a file that write_runs left.

    Raises:
        ValueError: There is none, or one that can't be read.
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
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a file of runs ({error!r})") from None
    for _, settings, epochs in runs:
        _check(settings, epochs, path)
    return [Run(name, _default_settings() | settings, epochs) for name, settings, epochs in runs]


def write_runs(path: Path, runs: list[Run], about: dict) -> None:
    """Write runs into one file, which find_runs reads: a header and all that they logged, without paths."""
    plain = [
        {
            "name": run.name,
            "settings": _without(run.settings, PATHS),
            "epochs": run.epochs,
        }
        for run in runs
    ]
    path.write_text(json.dumps(about | {"runs": plain}, indent=1) + "\n")


def by_experiment(runs: list[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seed, together, complete ones apart from the others; no fusion first.

    Raises:
        ValueError: One is there twice.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        compared = _without(run.settings, NOT_COMPARED)
        key = json.dumps([run.name, run.complete or len(run.epochs), compared], sort_keys=True)
        group = groups.setdefault(key, [])
        if any(other.settings.get("seed") == run.settings.get("seed") for other in group):
            raise ValueError(f"{run.name}: two runs with the same settings and seed {run.settings.get('seed')}")
        group.append(run)
    return sorted(groups.values(), key=lambda group: fused(group[0]) > 0)


def _without(settings: dict, names: tuple[str, ...]) -> dict:
    """The settings but those; of files that a run started from, the name alone."""
    files = {name: Path(settings[name]).name for name in ("finetune", "teacher_path") if settings.get(name)}
    return {name: value for name, value in (settings | files).items() if name not in names}


def baseline(runs: list[Run], among: list[list[Run]]) -> list[Run] | None:
    """The complete runs that fuse nothing and else are COMPARABLE, if there is one such experiment."""

    def same(other: Run) -> bool:
        return all(other.settings.get(name) == runs[0].settings.get(name) for name in COMPARABLE)

    plain = [group for group in among if group[0].complete and same(group[0]) and not fused(group[0])]
    return plain[0] if len(plain) == 1 else None


def fused(run: Run) -> int:
    """Tokens that fuse in all layers together."""
    return run.settings["token_counts"][0] - run.settings["token_counts"][-1]


def strategy(run: Run) -> str:
    """Its strategy in words, with its layer."""
    if run.settings.get("fusion_plan"):
        return "plan"
    name, layer = run.settings["fusion_strategy"], run.settings.get("fusion_layer")
    where = {"upper": f" from {layer}", "lower": f" below {layer}"} if layer is not None else {}
    return name + where.get(name, "")
