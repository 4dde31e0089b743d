"""Show the progress of long work: a bar on a terminal, now and then a plain line in a log file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from training.words import clock

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Iterate over steps and show how many are done.

    Args:
        steps: The steps to iterate over.
        label: Names the work.
        enabled: False shows nothing.
        done: Steps that were done before; `steps` yields only those after them.
    """

    def __init__(self, steps: Iterable, label: str, enabled: bool = True, done: int = 0) -> None:
        self.steps, self.label, self.done = steps, label, done
        self.total = length(steps)
        self.bar = enabled and sys.stderr.isatty()
        self.lines = enabled and not self.bar
        self.note = ""

    def __iter__(self) -> Iterator:
        if self.bar:
            with tqdm(self.steps, self.label, self.total, leave=False, initial=self.done, **_terminal_size()) as bar:
                for step in bar:
                    yield step
                    bar.set_postfix_str(self.note, refresh=False)
            return
        start = last = time.monotonic()
        for number, step in enumerate(self.steps, start=self.done + 1):
            yield step
            now = time.monotonic()
            if self.lines and now - last > SECONDS_BETWEEN_LINES:
                last = now
                print(f"{self.label}: step {number}{self._left(number, now - start)} {self.note}", flush=True)

    def _left(self, number: int, seconds: float) -> str:
        """Return the number of steps and the time left, as text; empty if the number isn't known."""
        if not self.total:
            return ""
        left = seconds / (number - self.done) * (self.total - number)
        return f"/{self.total}, {clock(left)} left,"


def _terminal_size() -> dict:
    """Return arguments that make tqdm ask the terminal for its size, or a usual size if the terminal says 0.

    With a size of 0, tqdm would show nothing.
    """
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except OSError:
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def length(of: Iterable) -> int | None:
    """Return the length, or None if it isn't known: a loader of a stream has a __len__ that raises."""
    try:
        return len(of)
    except TypeError:
        return None
