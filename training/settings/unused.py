"""Set flags aside that have no use here, with a note about each, so that published command lines run as they are."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fusion import LAYERED
from training.settings.flag import flags, names, spelling
from training.settings.model import FusionMethodSettings, FusionPlanSettings
from training.settings.parser import Parser


class Meaning(NamedTuple):
    """Tell what a flag of the published code means here, and which settings it gives."""

    told: str
    given: Mapping[str, Any] = {}


# Flags of DeiT, Vim and Famba-V that --help leaves out.
PUBLISHED = {
    "--attn-only": Meaning("means --train-only mixer", {"train_only": "mixer"}),
    "--bi-merge": Meaning("has no effect: --fusion-strategy alone turns fusion on"),
    "--distributed": Meaning("has no effect: a launcher or --world_size starts several processes"),
    "--dr": Meaning("has no effect"),
    "--no_continue_inf": Meaning("is the default", {"if_continue_inf": False}),
    "--no_nan2num": Meaning("is the default", {"if_nan2num": False}),
    "--no_random_cls_token_position": Meaning("is the default", {"if_random_cls_token_position": False}),
    "--no_random_token_rank": Meaning("is the default", {"if_random_token_rank": False}),
    "--resplit": Meaning("has no effect: no batch is split into clean and augmented images"),
    "--visualize": Meaning("has no effect: visualize.py draws what fuses"),
}


class Accept(argparse.Action):
    """Note what a published flag means here, and give the settings that it stands for."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        told, given = PUBLISHED[self.option_strings[0]]
        namespace.notes = (*getattr(namespace, "notes", ()), f"{self.option_strings[0]} {told}")
        for name, value in given.items():
            setattr(namespace, name, value)


def accept_published(parser: Parser) -> None:
    """Let a parser of main.py's flags accept the published ones too, with or without a value."""
    hidden = dict.fromkeys(("dest", "default", "help"), argparse.SUPPRESS)
    for flag in PUBLISHED:
        parser.add_argument(flag, action=Accept, nargs="?", **hidden)


def set_aside(settings: Any, said: set[str]) -> Any:
    """Return settings without the flags of fusion that their strategy does not use; their notes name these flags.

    Args:
        settings: Of any program; without flags of a fusion plan, they are returned as they are.
        said: Names of the flags that the command line gives. Without --fusion-strategy among them, an amount under the
            strategy `no` is kept, for an error to tell that the strategy was forgotten.
    """
    if not isinstance(settings, FusionPlanSettings):
        return settings
    told = {each.name: (each.default, spelling(each)) for each, _ in flags(type(settings))}
    changed, notes = {}, []
    for name in _without_use(settings, said):
        (default, flag), value = told[name], getattr(settings, name)
        if value != default:
            changed[name] = default
            notes.append(f"{flag if value is True else f'{flag} {value}'} is not used by {settings.fusion_strategy}")
    return replace(settings, notes=(*settings.notes, *notes), **changed)


def _without_use(settings: FusionPlanSettings, said: set[str]) -> Iterable[str]:
    if settings.fusion_plan is not None or settings.fusion_strategy in LAYERED:
        return ()
    if settings.fusion_strategy != "no":
        return ("fusion_layer",)
    plan = names(FusionPlanSettings, follows="fusion_strategy")
    return (*plan, *names(FusionMethodSettings)) if "fusion_strategy" in said else ()
