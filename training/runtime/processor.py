"""Measure who uses the processor, from Linux's counters: times compare only if no other program computes."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
IDLE = (3, 4)  # columns of a core in /proc/stat: idle, and waiting for a disk


def busy_seconds(cores: list[int]) -> float:
    """Return the seconds that these cores were busy since the machine started, time the hypervisor took included."""
    busy = 0
    for line in _read("/proc/stat").splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            ticks = [int(column) for column in columns[:8]]  # the last columns, of guests, are part of the first two
            busy += sum(ticks) - sum(ticks[column] for column in IDLE)
    return busy / TICKS


def busy_cores(cores: list[int], seconds: float = 0.2) -> float:
    """Return how many of these cores are busy on average over some seconds of sleep; 0 on other systems than Linux."""
    before, start = busy_seconds(cores), time.perf_counter()
    time.sleep(seconds)
    return (busy_seconds(cores) - before) / (time.perf_counter() - start)


def family_seconds(root: int) -> float:
    """Return the processor seconds of a process, its descendants, and the ended processes that these waited for."""
    parents, seconds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        columns = _read(folder / "stat").rpartition(")")[2].split()  # after the name, which may contain anything
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
    except OSError:  # not Linux, or the process has just ended
        return ""


class OtherProcesses:
    """Measure how busy other programs keep the cores.

    Args:
        cores: The cores to watch.
        root: This process and its descendants are not other programs; the launcher, if there is one.
    """

    def __init__(self, cores: list[int], root: int) -> None:
        self.cores, self.root = cores, root
        self.start, self.before = time.perf_counter(), self._seconds()

    def busy_cores(self) -> float:
        """Return how many cores other programs used on average since the last call (or creation); 0 if not on Linux."""
        now, seconds = time.perf_counter(), self._seconds()
        taken = (seconds - self.before) / max(now - self.start, 1e-9)
        self.start, self.before = now, seconds
        return min(max(taken, 0.0), float(len(self.cores)))

    def _seconds(self) -> float:
        return busy_seconds(self.cores) - family_seconds(self.root)
