"""Progress of long work: a bar on a terminal, now and then a plain line in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Iterate over steps and show where they are.

    Args:
        steps: What to iterate over.
        label: What is being done.
        enabled: False shows nothing.
        done: Steps that were done before, of which `steps` knows only the rest.
    """

    def __init__(self, steps: Iterable, label: str, enabled: bool = True, done: int = 0) -> None:
        self.steps, self.label, self.done = steps, label, done
        self.total = length(steps)
        self.bar = enabled and sys.stderr.isatty()
        self.lines = enabled and not self.bar
        self.note = ""

    def __iter__(self) -> Iterator:
        if self.bar:
            with tqdm(self.steps, self.label, self.total, leave=False, dynamic_ncols=True, initial=self.done) as bar:
                for step in bar:
                    yield step
                    bar.set_postfix_str(self.note, refresh=False)
            return
        last = time.monotonic()
        for number, step in enumerate(self.steps, start=self.done + 1):
            yield step
            if self.lines and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"{self.label}: step {number}{f'/{self.total}' if self.total else ''} {self.note}", flush=True)


def length(of: Iterable) -> int | None:
    """How many there are, None where that isn't known: a loader of a stream has a __len__ that raises."""
    try:
        return len(of)
    except TypeError:
        return None
