"""End a running program with one line if the user can mend the error, and with a traceback otherwise."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.settings.failure import fail

LESS = "a smaller --batch-size, with --grad-accum-steps, or --grad-checkpointing needs less"


@contextmanager
def in_one_line_while_running() -> Iterator[None]:
    """End the program with one line on numbers that aren't finite, files that fail or too little memory."""
    try:
        yield
    except (FloatingPointError, OSError) as error:
        fail(last_line(error), code=1, met_by="one")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"{last_line(error)} ({LESS})", code=1, met_by="one")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU or the machine ran out of memory; PyTorch has no error class for the machine's memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def last_line(error: Exception) -> str:
    """Return an error's message without the traceback that a loading process puts before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^[\w.]*Error: ", "", lines[-1])
