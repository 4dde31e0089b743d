"""Convert the text of flags to values, and refuse values out of bounds."""

import argparse
import ast
import os
from collections.abc import Sequence
from typing import Any


class ImageSize(argparse.Action):
    """Take one number, or height and width; store (height, width)."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if len(values) > 2:
            raise argparse.ArgumentError(self, "takes one number, or height and width")
        setattr(namespace, self.dest, (values[0], values[-1]))


def path(text: str) -> str:
    """Convert a path, a type for argparse: ~ becomes the user's home even if no shell has replaced it."""
    return os.path.expanduser(text)


def data_set_name(text: str) -> str:
    """Convert a data set's name, a type for argparse: those without a slash are known in capitals, each by one name."""
    name = text if "/" in text else text.upper()
    return "CIFAR" if name == "CIFAR100" else name


def with_names_of_now(run: dict) -> dict:
    """Return a run's settings with the data set's name as its flag gives it; older versions kept it as it was typed."""
    name = run.get("data_set")
    return run | {"data_set": data_set_name(name)} if isinstance(name, str) else run


def key_value(text: str) -> str:
    """Check that a word is KEY=VALUE, a type for argparse; `keyword_arguments` reads it."""
    key, equals, _ = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return text


def keyword_arguments(words: Sequence[str] | None) -> dict[str, Any]:
    """Return the arguments in words KEY=VALUE: Python literals, or else text, as timm's ParseKwargs reads them."""
    found = {}
    for key, _, value in (word.partition("=") for word in words or ()):
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[key] = value
    return found


def number(kind: type, low: float, high: float = float("inf"), above: bool = False):
    """Build a type for argparse: a number in [low, high], or in (low, high] with above."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number") from None
        if not (low < value if above else low <= value) or not value <= high:
            bound = f"above {low}" if above else f"{low} or more"
            raise argparse.ArgumentTypeError(
                f"must be {bound if high == float('inf') else f'{low} to {high}'}, not {text}"
            )
        return value

    return parse


count = number(int, 0)
positive = number(int, 1)
amount = number(float, 0)
share = number(float, 0, 1)
above_zero = number(float, 0, above=True)
