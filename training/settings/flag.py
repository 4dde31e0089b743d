"""Declare each flag once, as a field of a settings dataclass, and build the parser from these fields."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Hold what belongs to a flag besides its default.

    Attributes:
        help: One line for --help.
        kind: Converts the text of a command line and refuses values out of bounds; None for switches.
        spelling: As the parser registers it; if None, `--` and the field's name with hyphens.
        off: Spelling and help of a second switch that means the opposite.
        negatable: A switch that is off by default has a --no- form too.
        positional: It is given on the command line without a spelling.
        choices, metavar, nargs, action: As in argparse.
        follows: The leading flag of its group; programs that read a run's checkpoint take over a group as a whole.
        amount: It says how many tokens fuse; such flags exclude each other.
        fixed: With another value, a resumed run would end differently.
        compared: Runs that differ in it are different experiments.
        unused_with: The switch that leaves this flag without effect.
        place: It is a path or place of the run, which means nothing on another machine.
        file: It names a file; runs are compared by the file, wherever it lies.
        cost: Time and memory can be compared only between runs with the same value.
        shown: TensorBoard's table of runs has a column for it.
        repeated: A run that is made from another run's settings takes it over.
        noted: Parsing notes it; no flag gives it.
    """

    help: str = ""
    kind: Callable[[str], Any] | None = None
    spelling: str | None = None
    off: tuple[str, str] | None = None
    negatable: bool = False
    positional: bool = False
    choices: Sequence | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: str | int | None = None
    action: type[argparse.Action] | None = None
    follows: str | None = None
    amount: bool = False
    fixed: bool = False
    compared: bool = True
    unused_with: str | None = None
    place: bool = False
    file: bool = False
    cost: bool = False
    shown: bool = False
    repeated: bool = True
    noted: bool = False


def flag(default: Any, help: str, kind: Callable[[str], Any] | None = None, **more) -> Any:
    """Declare a field of a settings dataclass that is a flag; `...` as the default makes it required."""
    told = {"flag": Flag(help=help, kind=kind, **more)}
    return field(metadata=told) if default is ... else field(default=default, metadata=told)


def flags(settings: type) -> Iterator[tuple[Field, Flag]]:
    """Yield every field of a settings dataclass with its flag."""
    for each in fields(settings):
        yield each, each.metadata["flag"]


def names(settings: type, **wanted) -> tuple[str, ...]:
    """Return the names of the flags that have these attributes, such as fixed=True."""
    return tuple(
        each.name
        for each, told in flags(settings)
        if all(getattr(told, attribute) == value for attribute, value in wanted.items())
    )


def groups(settings: type) -> dict[str, tuple[str, ...]]:
    """Return the names in each group of flags by its leading flag, which is one of them."""
    leaders = dict.fromkeys(told.follows for _, told in flags(settings) if told.follows)
    return {leader: names(settings, follows=leader) for leader in leaders}


def group_values(settings: Any, leader: str) -> dict[str, Any]:
    """Return the flags of a group with their values, sequences as lists, as JSON gives them back."""
    values = {name: getattr(settings, name) for name in groups(type(settings))[leader]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def spelling(each: Field) -> str:
    """Return a flag as it is written on a command line, such as --batch-size."""
    return each.metadata["flag"].spelling or f"--{each.name.replace('_', '-')}"


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add the flags of a settings dataclass to a parser, in groups by the TITLE of their classes."""
    groups = {None: parser}
    for each, told in flags(settings):
        if told.noted:
            continue
        title = _title(settings, each.name)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], each, told)


def _title(settings: type, name: str) -> str | None:
    """Return the title of a flag's group: that of the class that declares it, or of the first subclass with a title."""
    owner = next(cls for cls in settings.__mro__ if name in inspect.get_annotations(cls))
    titled = [cls for cls in settings.__mro__ if issubclass(cls, owner) and "TITLE" in vars(cls)]
    return titled[-1].TITLE


def _add_flag(group: Any, each: Field, told: Flag) -> None:
    default = None if each.default is MISSING else each.default
    common = {"dest": each.name, "default": default, "help": told.help}
    if told.off:
        pair = group.add_mutually_exclusive_group()
        pair.add_argument(spelling(each), action="store_true", **common)
        off, help = told.off
        pair.add_argument(off, action="store_false", **(common | {"help": help}))
    elif told.positional:
        group.add_argument(each.name, type=told.kind, nargs=told.nargs, metavar=told.metavar, help=told.help)
    elif default is False and not told.negatable:
        group.add_argument(spelling(each), action="store_true", **common)
    elif isinstance(default, bool):
        group.add_argument(spelling(each), action=argparse.BooleanOptionalAction, **common)
    else:
        optional = {"nargs": told.nargs, "action": told.action, "choices": told.choices, "metavar": told.metavar}
        given = {name: value for name, value in optional.items() if value is not None}
        group.add_argument(spelling(each), type=told.kind, required=each.default is MISSING, **common, **given)
