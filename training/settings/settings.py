"""Join all settings of a training run in one flat, frozen object; most functions read one group of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.settings.flag import flag
from training.settings.images import AugmentationSettings, DataSettings, LoadingSettings
from training.settings.kinds import path
from training.settings.learning import LossSettings, OptimizerSettings, RateSettings
from training.settings.model import FusionSettings, ModelSettings
from training.settings.run import ProcessSettings, RunSettings

RECIPES = Path(__file__).parents[2] / "recipes"
DEFAULT_RECIPE = "deit"  # the defaults of the flags


# Dataclasses list the fields of the last base first, and so does --help.
@dataclass(frozen=True, kw_only=True)
class Settings(
    ProcessSettings,
    RunSettings,
    RateSettings,
    OptimizerSettings,
    LossSettings,
    AugmentationSettings,
    LoadingSettings,
    DataSettings,
    FusionSettings,
    ModelSettings,
):
    """Hold all settings of main.py."""

    TITLE: ClassVar[str | None] = None

    config: str | None = flag(
        None,
        "YAML of flags and values, or a run's args.json; flags on the command line override it",
        path,
        metavar="FILE",
        place=True,
        repeated=False,
    )
    recipe: str = flag(
        DEFAULT_RECIPE,
        "defaults of the flags: deit, shown below, for about 300 epochs; short, from recipes/, for a few epochs of a "
        "small model; --config and flags override them",
        choices=(DEFAULT_RECIPE, *sorted(file.stem for file in RECIPES.glob("*.yaml"))),
        compared=False,  # the flags that it sets are compared instead
    )
