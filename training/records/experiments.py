"""Group runs into experiments, and find the baseline for an experiment's time and memory."""

import json
import re
from itertools import takewhile

from training.records.runs import PLACES, Run, fused, without
from training.settings.facts import recorded

# Besides the seed, these may differ within one experiment: how a run was started, watched and loaded, and its date.
NOT_COMPARED = (*PLACES, *recorded(compared=False))
# These must be equal for the time and memory of two runs to be comparable.
COMPARABLE = recorded(cost=True)


def by_experiment(runs: list[Run]) -> tuple[list[list[Run]], list[str]]:
    """Group runs that differ only in their seed; complete and unfinished runs never share a group.

    Seeds that another machine trained belong to the same group, unless both machines trained the same seed.

    Returns:
        The experiments, those without fusion first; and a line about each run that is left out because another run has
        the same settings and seed.
    """
    groups: dict[tuple[str, str | None], dict[str, Run]] = {}
    notes = []
    for run in runs:
        unused = recorded(unused_with="no_aug") if run.settings["no_aug"] else ()
        compared = without(run.settings, (*NOT_COMPARED, *unused))
        key = json.dumps([run.complete or len(run.epochs), compared], sort_keys=True)
        seed = run.settings.get("seed")
        first = groups.setdefault((key, run.machine), {}).setdefault(json.dumps(seed), run)
        if first is not run:
            notes.append(f"{run.source}: left out, has the settings and the seed, {seed}, of {first.source}")
    joined = _across_machines(groups)
    return sorted((list(group.values()) for group in joined), key=lambda group: fused(group[0]) > 0), notes


def _across_machines(groups: dict[tuple[str, str | None], dict[str, Run]]) -> list[dict[str, Run]]:
    """Join groups of equal settings, each of one machine and by seed, that have no seed in common."""
    joined: dict[str, list[dict[str, Run]]] = {}
    for (settings, _), group in groups.items():
        alike = joined.setdefault(settings, [])
        other = next((other for other in alike if not other.keys() & group.keys()), None)
        if other is None:
            alike.append(group)
        else:
            other.update(group)
    return [group for alike in joined.values() for group in alike]


def common_name(runs: list[Run]) -> str:
    """Name an experiment by the words with which all its runs' names begin, or else by all the names."""
    names = list(dict.fromkeys(run.name for run in runs))
    words = zip(*(re.findall(r"[^\W_]+|[\W_]+", name) for name in names), strict=False)
    alike = "".join(here[0] for here in takewhile(lambda here: len(set(here)) == 1, words))
    return names[0] if len(names) == 1 else alike.rstrip("-_. ") or ", ".join(names)


def baseline(runs: list[Run], among: list[list[Run]]) -> list[Run] | None:
    """Return the complete experiment without fusion with equal COMPARABLE settings; None unless exactly one exists."""

    def same(other: Run) -> bool:
        return all(other.settings.get(name) == runs[0].settings.get(name) for name in COMPARABLE)

    plain = [group for group in among if group[0].complete and same(group[0]) and not fused(group[0])]
    return plain[0] if len(plain) == 1 else None
