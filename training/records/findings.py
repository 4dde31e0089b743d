"""Keep what long work finds in a JSON file, so that the same command continues it after an interruption."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.state.checkpoint import replace_file


class Findings:
    """Hold rows of findings, and write them to a file.

    Args:
        path: The file, which is read if it exists; None keeps nothing.

    Attributes:
        about: What the rows depend on, by name.
        rows: In the order in which they were found.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.about, self.rows = _read(path) if path and path.exists() else ({}, [])

    def find(self, known: dict) -> dict | None:
        """Return the row that has all these entries, None if there is none."""
        return next((row for row in self.rows if known.items() <= row.items()), None)

    def write(self) -> None:
        """Write everything, so that a crash at any moment leaves the old file or the new one."""
        if self.path:
            text = json.dumps(self.about | {"rows": self.rows}, indent=1) + "\n"
            replace_file(self.path, lambda file: file.write(text.encode()))


def _read(path: Path) -> tuple[dict, list[dict]]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        found = None
    rows = found.pop("rows", None) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: holds no findings of this program; choose another --output_dir")
    return found, rows


@contextmanager
def interruptible(program: str, path: Path | None) -> Iterator[None]:
    """End the program with one line if it is interrupted, saying whether it can continue."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"the same command continues from {path}" if path else "nothing was kept: no --output_dir was given"
        print(f"{program}: interrupted; {kept}", file=sys.stderr)
        sys.exit(130)
