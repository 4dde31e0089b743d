"""How many threads compute and how they wait for each other: OpenMP is told before PyTorch's import, and only then.

OpenMP's threads spin while they wait, which is fastest where each has a core. Where another process runs on one of
them, the thread that everybody waits for is not running, and spinning is what keeps it from it.
"""

import os
from pathlib import Path

from training.runtime.processor import busy_cores

SHARED = 0.25  # busy cores from which on a processor is shared: more than the system itself ever takes


def usable_cores() -> list[int]:
    """The cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processes_here() -> int:
    """How many processes train together on this machine: torchrun says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def share_of_cores() -> int:
    """This process's share of the cores, at least one."""
    return max(1, len(usable_cores()) // processes_here())


def prepare_threads() -> None:
    """Set what the user hasn't: each process uses its share of the cores, and threads sleep where others compute."""
    if processes_here() > 1 and not said_by_user("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(share_of_cores())
    if not says_how_to_wait() and busy_cores(usable_cores()) > SHARED:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def says_how_to_wait() -> bool:
    """Whether the environment says how OpenMP's threads wait."""
    return bool({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys())


def contended(cores_of_others: float, threads: int) -> bool:
    """Whether others took cores that the threads of this training's processes here wanted."""
    free = len(usable_cores()) - threads * processes_here()
    return cores_of_others > SHARED + max(free, 0)


def said_by_user(variable: str) -> bool:
    """Whether an environment variable was set before torchrun, this process's parent, which sets some itself."""
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in before)
