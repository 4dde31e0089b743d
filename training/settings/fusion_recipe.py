"""Read the flags of a published method of fusion by its name, from recipes/fusion/."""

import sys

from training.settings.flag import names
from training.settings.fusion_conflicts import without_effect
from training.settings.model import FUSION_RECIPES, FusionPlanSettings
from training.settings.parser import Parser


def with_recipe(parser: Parser, argv: list[str] | None) -> list[str]:
    """Return a command line with the flags of its --fusion-recipe in front, without those that its other flags replace.

    Args:
        parser: Knows the flags, --fusion-recipe among them or not.
        argv: The command line; sys.argv if None.
    """
    import yaml  # comes with timm, and is needed only here and for --config

    argv = sys.argv[1:] if argv is None else argv
    given, said = parser.read(argv), parser.said(argv)
    if not getattr(given, "fusion_recipe", None):
        return argv
    text = (FUSION_RECIPES / f"{given.fusion_recipe}.yaml").read_text()
    values = {parser.meaning(name): value for name, value in yaml.load(text, yaml.BaseLoader).items()}
    left = said | without_effect(given, said, values)
    if "fusion_plan" in said:
        left |= set(names(FusionPlanSettings))
    return [word for name, value in values.items() if name not in left for word in parser.words(name, value)] + argv
