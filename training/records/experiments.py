"""Which runs are repetitions of one experiment, and with which other one its time and memory compare."""

import json
import re
from itertools import takewhile

from training.records.runs import PATHS, Run, fused, without

# What else may differ between the seeds of one experiment: how it was started, watched and loaded, and on what day.
NOT_COMPARED = (
    *PATHS,
    "seed",
    "recipe",  # what it sets is compared
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

# What --no-aug leaves without effect.
AUGMENTATION = ("aa", "color_jitter", "ThreeAugment", "src", "train_interpolation", "reprob", "remode", "recount")
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


def by_experiment(runs: list[Run]) -> tuple[list[list[Run]], list[str]]:
    """Runs that differ in nothing but their seed, together, complete ones apart from the others; no fusion first.

    Returns:
        The experiments; and a line about each run that is left out, since another has its settings and seed.
    """
    groups: dict[str, dict[str, Run]] = {}
    notes = []
    for run in runs:
        unused = AUGMENTATION if run.settings["no_aug"] else ()
        compared = without(run.settings, (*NOT_COMPARED, *unused))
        key = json.dumps([run.complete or len(run.epochs), compared], sort_keys=True)
        seed = run.settings.get("seed")
        first = groups.setdefault(key, {}).setdefault(json.dumps(seed), run)
        if first is not run:
            notes.append(f"{run.source}: left out, has the settings and the seed, {seed}, of {first.source}")
    return sorted((list(group.values()) for group in groups.values()), key=lambda group: fused(group[0]) > 0), notes


def common_name(runs: list[Run]) -> str:
    """What an experiment is called: the words that its runs' names begin with alike, or all the names."""
    names = list(dict.fromkeys(run.name for run in runs))
    words = zip(*(re.findall(r"[^\W_]+|[\W_]+", name) for name in names), strict=False)
    alike = "".join(here[0] for here in takewhile(lambda here: len(set(here)) == 1, words))
    return names[0] if len(names) == 1 else alike.rstrip("-_. ") or ", ".join(names)


def baseline(runs: list[Run], among: list[list[Run]]) -> list[Run] | None:
    """The complete runs that fuse nothing and else are COMPARABLE, if there is one such experiment."""

    def same(other: Run) -> bool:
        return all(other.settings.get(name) == runs[0].settings.get(name) for name in COMPARABLE)

    plain = [group for group in among if group[0].complete and same(group[0]) and not fused(group[0])]
    return plain[0] if len(plain) == 1 else None
