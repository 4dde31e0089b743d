"""Let only one process at a time use an output directory."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory until the context ends or this process dies.

    Raises:
        ValueError: Another process holds the directory; the message names it.
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
    """Open and lock the file, which may be left over from a process that was killed."""
    while True:
        file = open(path, "a+")  # noqa: SIM115, the caller closes it
        try:
            # Unlike flock's locks, lockf's also work between machines over NFS, and data loading processes, which
            # outlive a killed parent for seconds, don't inherit them.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"--output_dir {path.parent}: {holder} is running there") from None
        except OSError:
            return file  # this file system has no locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()  # the process that held the lock has just ended and removed the file
