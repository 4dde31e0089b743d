"""One process at a time in an output directory."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory until this context ends or this process dies.

    Raises:
        ValueError: Another process is in it; says which.
    """
    path = directory / ".lock"
    with _lock(path) as file:
        file.truncate(0)
        print(f"process {os.getpid()} of {socket.gethostname()}", file=file, flush=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO:
    """The file, opened and locked; it is a leftover where the process that made it was killed."""
    while True:
        file = open(path, "a+")  # noqa: SIM115, the caller closes it
        try:
            # lockf's locks also hold between machines over NFS; and loading processes, which outlive a killed parent
            # for seconds, don't inherit them as they do flock's.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"--output_dir {path.parent}: {holder} is running there") from None
        except OSError:
            return file  # this file system has no locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()  # the process that held it has just ended, and removed it
