"""Check the types of a checkpoint's entries, so that a wrong one is refused at once and nothing fails later."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def is_plain_tensor(value: object) -> bool:
    """Return whether a value is an ordinary dense tensor: not sparse, quantized or on the meta device."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def is_settings(value: object) -> bool:
    """Return whether a value is a dictionary of names and plain values, as in args.json."""
    names = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return names and all(leaf is None or isinstance(leaf, str | int | float) for leaf in _leaves(value))


def check_entries(saved: dict) -> None:
    """Check the entries that training resumes from; missing ones are not an error here.

    Raises:
        ValueError: An entry has another type than the one that training writes; the message names it.
    """
    for name, (fits, kind) in KINDS.items():
        if name in saved and not fits(saved[name]):
            raise ValueError(f"its {name} is not {kind}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_grid(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_count(n) and n for n in value)


def _are_sums(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values())) and _is_count(value.get("steps", 0))


def _is_groups(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, list) and all(isinstance(name, str) for name in group) for group in value
    )


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(is_plain_tensor(leaf) for leaf in _leaves(value) if isinstance(leaf, Tensor))


def _leaves(value: object, depth: int = 0) -> Iterator[object]:
    """Yield the values inside nested dictionaries and lists; below 20 levels, yield the containers themselves."""
    if depth < 20 and isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner, depth + 1)
    else:
        yield value


KINDS = {
    "epoch": (_is_count, "a number of epochs"),
    "images": (_is_count, "a number of images"),
    "sums": (_are_sums, "what an epoch sums up"),
    "best_acc1": (_is_number, "a number"),
    "ema_steps": (_is_count, "a number of steps"),
    "grid_size": (_is_grid, "a number of rows and columns"),
    "opt": (lambda value: isinstance(value, str), "a name"),
    "optimizer": (_is_state, "the state of an optimizer"),
    "optimizer_names": (_is_groups, "names of weights by groups"),
    "scheduler": (lambda value: value is None or _is_state(value), "the state of a scheduler"),
    "scaler": (lambda value: value is None or _is_state(value), "the state of a scaler"),
}
