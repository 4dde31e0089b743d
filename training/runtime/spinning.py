"""Let OpenMP's threads spin while they wait for each other, but not while other processes need the cores.

GNU's OpenMP, which PyTorch brings along, lets a thread spin 300,000 times before it sleeps, but only 100 times where a
process has more OpenMP threads than cores (its manual, GOMP_SPINCOUNT). Starting teams of idle threads brings this
about at any time. The number of threads that compute doesn't change, so sums stay the same to the last bit.
"""

import math
import os
import threading
import time

import torch

from training.runtime.distributed import launched
from training.runtime.processor import OtherProcesses
from training.runtime.threads import contended, says_how_to_wait, usable_cores

SECONDS_BETWEEN_LOOKS = 10  # a look takes milliseconds, more if thousands of processes run


def watch_others() -> OtherProcesses:
    """Watch, from now on, the processes that are not part of this training run."""
    return OtherProcesses(usable_cores(), root=os.getppid() if launched() else os.getpid())


class Spinning:
    """Allow or forbid spinning by how busy other processes are, unless the environment sets how threads wait."""

    def __init__(self) -> None:
        self.others, self.looked = watch_others(), time.monotonic()
        self.idle: list[threading.Thread] = []
        self.enough = threading.Event()

    def look(self) -> None:
        """Look at other processes if the last look was some seconds ago; cheap enough for every step."""
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS or says_how_to_wait():
            return
        if contended(self.others.busy_cores(), torch.get_num_threads()):
            self.forbid()
        else:
            self.allow()
        self.looked = time.monotonic()

    def forbid(self) -> None:
        """Start idle threads until there are more than cores, unless done already; a single thread never waits."""
        threads = torch.get_num_threads()
        if self.idle or threads == 1:
            return
        missing = max(1, len(usable_cores()) + 1 - threads)
        self.enough.clear()
        teams = math.ceil(missing / (threads - 1))  # the first thread of a team is the Python thread that starts it
        self.idle = [threading.Thread(target=self._idle_team, daemon=True) for _ in range(teams)]
        for thread in self.idle:
            thread.start()

    def allow(self) -> None:
        """End the idle teams."""
        self.enough.set()
        for thread in self.idle:
            thread.join()
        self.idle = []

    def _idle_team(self) -> None:
        torch.zeros(2**20).add_(1)  # large enough to need a team of threads, which lives as long as this thread
        self.enough.wait()
