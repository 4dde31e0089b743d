"""Who uses the processor, by what Linux counts: times are comparable only where nobody else does."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
IDLE = (3, 4)  # of a core's columns in /proc/stat: idle, and waiting for a disk


def busy_seconds(cores: list[int]) -> float:
    """Seconds that these cores were busy since the machine started, the hypervisor's taking them away included."""
    busy = 0
    for line in _read("/proc/stat").splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            ticks = [int(column) for column in columns[:8]]  # the rest, of guests, is counted among the first
            busy += sum(ticks) - sum(ticks[column] for column in IDLE)
    return busy / TICKS


def busy_cores(cores: list[int], seconds: float = 0.2) -> float:
    """How many of these cores are busy on the mean of some time in which this process sleeps; 0 off Linux."""
    before, start = busy_seconds(cores), time.perf_counter()
    time.sleep(seconds)
    return (busy_seconds(cores) - before) / (time.perf_counter() - start)


def family_seconds(root: int) -> float:
    """Processor time of a process, of all that descend from it, and of those that it waited for."""
    parents, seconds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        columns = _read(folder / "stat").rpartition(")")[2].split()  # after the name, which may hold anything
        if columns:
            parents[int(folder.name)] = int(columns[1])
            seconds[int(folder.name)] = sum(int(ticks) for ticks in columns[11:15]) / TICKS
    return sum(time for process, time in seconds.items() if _descends(process, root, parents))


def _descends(process: int, root: int, parents: dict[int, int]) -> bool:
    while process and process != root:
        process = parents.get(process, 0)
    return process == root


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # no Linux, or a process that has just ended
        return ""


class OtherProcesses:
    """How busy others keep the cores.

    Args:
        cores: Those to watch.
        root: What descends from this process isn't another's: the launcher's, where there is one.
    """

    def __init__(self, cores: list[int], root: int) -> None:
        self.cores, self.root = cores, root
        self.start, self.before = time.perf_counter(), self._seconds()

    def busy_cores(self) -> float:
        """Cores' worth of time that others took since this was made or last asked: 0 to all cores; 0 off Linux."""
        now, seconds = time.perf_counter(), self._seconds()
        taken = (seconds - self.before) / max(now - self.start, 1e-9)
        self.start, self.before = now, seconds
        return min(max(taken, 0.0), float(len(self.cores)))

    def _seconds(self) -> float:
        return busy_seconds(self.cores) - family_seconds(self.root)
