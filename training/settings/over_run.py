"""Take over a run's model, data and fusion, unless flags override them."""

from dataclasses import replace
from typing import Any

from training.settings.flag import groups
from training.settings.fusion_conflicts import without_effect
from training.settings.fusion_recipe import with_recipe
from training.settings.parser import Parser
from training.settings.unused import set_aside

NOT_GIVEN = (None, "null")  # an unset value in a run's args.json, or in a file of flags


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
    argv = with_recipe(parser, argv)
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
    left = without_effect(given, said, taken)
    return {name: value for name, value in taken.items() if name not in left}
