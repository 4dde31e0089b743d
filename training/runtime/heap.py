"""Set what becomes of freed memory on a CPU: it is kept for the next step, and given back only when that is asked for.

By itself glibc gives larger pieces back to the system as soon as they are free. Every step then takes the same memory
anew, and the system has to clear each page of it.
"""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
NEVER = -1
LARGEST = 32 << 20  # bytes; pieces of this size and more are given back all the same


def keep_freed_memory() -> None:
    """Let glibc keep what is freed until `give_back_freed_memory`, but for pieces of 32 MiB or more.

    Other C libraries have no such settings.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, NEVER)
        libc.mallopt(MMAP_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Let glibc return freed memory to the system.

    Otherwise it would still count as in use, and whatever reuses it later would seem to need no memory.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
