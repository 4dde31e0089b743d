"""Which runs are repetitions of one experiment, and with which other one its time and memory compare."""

import json
import re
from itertools import takewhile

from training.records.runs import PLACES, Run, fused, without
from training.settings.facts import recorded

# What else may differ between the seeds of one experiment: how it was started, watched and loaded, and on what day.
NOT_COMPARED = (*PLACES, *recorded(compared=False))
# What must be alike for a run's time and memory to be compared with those of another one.
COMPARABLE = recorded(cost=True)


def by_experiment(runs: list[Run]) -> tuple[list[list[Run]], list[str]]:
    """Runs that differ in nothing but their seed, together, complete ones apart from the others; no fusion first.

    Returns:
        The experiments; and a line about each run that is left out, since another has its settings and seed.
    """
    groups: dict[str, dict[str, Run]] = {}
    notes = []
    for run in runs:
        unused = recorded(unused_with="no_aug") if run.settings["no_aug"] else ()
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
