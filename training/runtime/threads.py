"""Set how many threads compute and how they wait for each other, which OpenMP reads once, at PyTorch's import.

OpenMP's threads spin while they wait, which is fastest if each thread has a core. If another process takes one of the
cores, the thread that all wait for may not be running, and the spinning threads keep it from getting a core.
"""

import os
import re
from pathlib import Path

from training.runtime.processor import busy_cores

SHARED = 0.25  # with more busy cores than this, a processor is shared; the system itself never takes as many


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processes_here() -> int:
    """Return how many processes of this training share the cores that this one may use, as torchrun or srun tells."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    # srun may bind each task to cores of its own: then fewer than all tasks of the node share them.
    usable = len(usable_cores())
    on_node = int(os.environ.get("SLURM_CPUS_ON_NODE", usable))
    return max(1, _tasks_on_node() * usable // on_node)


def _tasks_on_node() -> int:
    """Return how many tasks srun started on this node; 1 without srun."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    # `2(x3),1` is two tasks on each of three nodes, and one on the fourth.
    nodes = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    each = [int(count) for count, times in nodes for _ in range(int(times or 1))]
    node = int(os.environ.get("SLURM_NODEID", 0))
    return each[node] if node < len(each) else each[0]


def share_of_cores() -> int:
    """Return this process's share of the cores, at least one."""
    return max(1, len(usable_cores()) // processes_here())


def prepare_threads() -> None:
    """Let each process use its share of the cores, and waiting threads sleep if other programs compute.

    Settings of the user's environment stay.
    """
    if processes_here() > 1 and not said_by_user("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(share_of_cores())
    if not says_how_to_wait() and busy_cores(usable_cores()) > SHARED:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def says_how_to_wait() -> bool:
    """Return whether the environment sets how OpenMP's threads wait."""
    return bool({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys())


def contended(cores_of_others: float, threads: int) -> bool:
    """Return whether other programs took cores that this run's threads on this machine needed."""
    free = len(usable_cores()) - threads * processes_here()
    return cores_of_others > SHARED + max(free, 0)


def said_by_user(variable: str) -> bool:
    """Return whether the user set an environment variable.

    torchrun, this process's parent, sets some variables itself, for its children only; srun sets none of them.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return variable in os.environ
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in before)
