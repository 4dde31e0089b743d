"""How a program ends when something is wrong: with one line, which names the flag and the nearest names."""

import difflib
import os
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
        program: What the user started.
        met_by: Who meets this error, so that it is said once: `all` processes, those of a `machine`, or `one` of them.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if rank == 0 or met_by == "one" or (met_by == "machine" and local_rank == 0):
        who = f"rank {rank}: " if rank else ""
        print(f"{program}: error: {who}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    else:
        # A launcher ends all processes when one exits: the one that speaks must have had the time to.
        time.sleep(SECONDS_TO_SPEAK)
    sys.exit(code)


@contextmanager
def in_one_line(*, met_by: str = "all", program: str = "main.py") -> Iterator[None]:
    """Let a wrong flag or file, ValueError or OSError, end the program with one line; arguments as in fail."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error, met_by=met_by, program=program)


def nearest(name: str, names: Iterable[str]) -> str:
    """', did you mean a or b?' for the names most like this one; nothing where none is."""
    names = list(names)
    begun = sorted((other for other in names if other.startswith(name)), key=len)  # too short to be close to any
    matches = (begun or difflib.get_close_matches(name, names))[:3]
    return f", did you mean {' or '.join(matches)}?" if matches else ""


def check_known(flag: str, name: str, known: Iterable[str]) -> None:
    """ValueError for a name that isn't known, with the nearest ones."""
    if name not in known:
        raise ValueError(f"{flag} {name}: no such name{nearest(name, known) or ', known are ' + ', '.join(known)}")
