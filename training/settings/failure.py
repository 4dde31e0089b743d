"""End a program with one line if something is wrong, naming the flag and the nearest known names."""

import difflib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

SECONDS_TO_SPEAK = 15


def fail(message: object, *, code: int = 2, met_by: str = "all", program: str = "main.py") -> NoReturn:
    """End the program with one line.

    Args:
        message: What is wrong.
        code: The exit code.
        program: The program that the user started.
        met_by: Which processes meet this error, so that it is printed once: `all`, all of a `machine`, or only `one`.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if rank == 0 or met_by == "one" or (met_by == "machine" and local_rank == 0):
        who = f"rank {rank}: " if rank else ""
        print(f"{program}: error: {who}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    else:
        # A launcher ends all processes when one exits: give the one that prints the time to do so.
        time.sleep(SECONDS_TO_SPEAK)
    sys.exit(code)


def tell(notes: Iterable[str], program: str) -> None:
    """Print notes beside the program's results, on the stream of errors, after its name."""
    for note in notes:
        print(f"{program}: {note}", file=sys.stderr, flush=True)


@contextmanager
def in_one_line(*, met_by: str = "all", program: str = "main.py") -> Iterator[None]:
    """End the program with one line on a ValueError or OSError (a wrong flag or file); arguments as in fail."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error, met_by=met_by, program=program)


@contextmanager
def naming_flags(flags: dict[str, str]) -> Iterator[None]:
    """Name flags in the ValueErrors of functions that name their parameters, in backticks: `layer`, --fusion-layer.

    Args:
        flags: The flag of each parameter.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub("`(\\w+)`", lambda name: flags.get(name[1], name[0]), str(error))) from None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ', did you mean a or b?' with the names most like this one, or an empty text if no name is like it."""
    names = list(names)
    begun = sorted((other for other in names if other.startswith(name)), key=len)  # too short for difflib to find close
    matches = (begun or difflib.get_close_matches(name, names))[:3]
    return f", did you mean {' or '.join(matches)}?" if matches else ""


def check_known(flag: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError if a name isn't known, naming the nearest known ones."""
    if name not in known:
        raise ValueError(f"{flag} {name}: no such name{nearest(name, known) or ', known are ' + ', '.join(known)}")
