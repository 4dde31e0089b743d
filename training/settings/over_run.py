"""Take over a run's model, data and fusion, unless flags override them."""

import re
from dataclasses import replace
from typing import Any

from training.settings.flag import groups, names
from training.settings.model import FusionMethodSettings, FusionPlanSettings
from training.settings.parser import Parser
from training.settings.unused import set_aside

AMOUNTS = set(names(FusionPlanSettings, amount=True))
METHODS = set(names(FusionMethodSettings))
NOT_GIVEN = (None, "null")  # an unset value in a run's args.json, or in a file of flags
# (flag, choice, {flag: default}): with this choice, the flags on the right have no effect. fusion.Method refuses any
# other value of them.
METHODS_OF_THEIR_OWN = (
    ("fusion_reduce", "prune", {"fusion_average": "mean"}),
    ("fusion_match", "random", {"fusion_metric": "hidden", "fusion_distance": "cosine"}),
)


def parse_over(parser: Parser, argv: list[str] | None, run: dict, source: str | None = None) -> Any:
    """Parse a command line over a run's settings: flags not given keep the run's model, data and fusion.

    If the command line names another model, data set or strategy, nothing of that group is taken over. If it names an
    amount of fusion, no amount is taken over. A method of fusion that would have no effect with the flags given is not
    taken over either. Flags of fusion that are of no use then are set aside.

    Args:
        parser: Of all flags.
        argv: The command line.
        run: The settings in the run's checkpoint.
        source: How the user knows the checkpoint, for errors; --resume and its file if None.

    Raises:
        ValueError: A flag does not take the run's value.
    """
    given, said = parser.read(argv), parser.said(argv)
    what = f"{source or f'--resume {given.resume}'}: its setting"
    taken = {name: value for name, value in taken_over(given, said, run).items() if name not in said}
    taken = {name: parser.as_said(name, value, f"{what} {name}") for name, value in taken.items()}
    return set_aside(replace(given, **taken), said)


def taken_over(given: Any, said: set[str], run: dict) -> dict:
    """Return the settings of a run's model, data and fusion that agree with the flags given on a command line."""
    taken = {}
    for leader, group in groups(type(given)).items():
        names_another = leader in said and getattr(given, leader) != run.get(leader)
        if leader == "fusion_strategy":
            names_another |= "fusion_plan" in said or (leader in said and run.get("fusion_plan") not in NOT_GIVEN)
        if not names_another:
            taken |= {name: run[name] for name in group if name in run}
    left = without_effect(given, said) | (AMOUNTS if said & AMOUNTS else set())
    return {name: value for name, value in taken.items() if name not in left}


def without_effect(given: Any, said: set[str]) -> set[str]:
    """Return the methods of fusion that would have no effect with the flags given on a command line."""
    nothing_fuses = "fusion_strategy" in said and given.fusion_strategy == "no"
    if "fusion_plan" in said:
        nothing_fuses = not re.search("[1-9]", given.fusion_plan)
    if nothing_fuses:
        return METHODS
    found = set()
    for name, choice, others in METHODS_OF_THEIR_OWN:
        if name in said and getattr(given, name) == choice:
            found |= set(others)
        if any(other in said and getattr(given, other) != default for other, default in others.items()):
            found.add(name)
    return found
