"""Find the settings of fusion, taken over from a run or a recipe, that flags of a command line leave without effect."""

import re
from collections.abc import Mapping
from typing import Any

from fusion import CONTRADICTIONS
from training.settings.flag import names
from training.settings.model import FusionMethodSettings, FusionPlanSettings

AMOUNTS = set(names(FusionPlanSettings, amount=True))
METHODS = set(names(FusionMethodSettings))


def without_effect(given: Any, said: set[str], taken: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings taken over that must be left out.

    If the command line completes a contradiction, the last of its choices that it doesn't give itself is left out.

    Args:
        given: The settings of the command line alone.
        said: The names of the flags that it gives.
        taken: The settings taken over.
    """
    nothing_fuses = "fusion_strategy" in said and given.fusion_strategy == "no"
    if "fusion_plan" in said:
        nothing_fuses = not re.search("[1-9]", given.fusion_plan)
    if nothing_fuses:
        return METHODS | AMOUNTS
    left = set(AMOUNTS) if said & AMOUNTS else set()
    together = vars(given) | {name: value for name, value in taken.items() if name not in said}
    for choices, _ in CONTRADICTIONS:
        flags = [f"fusion_{name}" for name in choices]
        contradict = all(together.get(flag) in refused for flag, refused in zip(flags, choices.values(), strict=True))
        if contradict and said & set(flags):
            left |= set([flag for flag in flags if flag not in said][-1:])
    return left
