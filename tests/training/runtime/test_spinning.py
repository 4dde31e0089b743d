"""Threads that wait for each other burn no time where others need the cores; what they compute stays the same."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from training.runtime import spinning
from training.runtime.spinning import Spinning
from training.runtime.threads import usable_cores

ROOT = Path(__file__).parents[3]
# Processor time that goes by in sleep: that of a thread that spins for its next work.
WASTE = """
import time, torch
from training.runtime.spinning import Spinning

torch.set_num_threads(2)
data, spinning = torch.zeros(2**20), Spinning()

def waste():
    seconds = 0.0
    for _ in range(50):
        data.add_(1)
        before = time.process_time()
        time.sleep(0.02)
        seconds += time.process_time() - before
    return seconds

for change in (lambda: None, spinning.forbid, spinning.allow):
    change()
    data.add_(1)
    print(waste())
"""


@pytest.fixture
def looking(monkeypatch):
    """A Spinning that finds so many cores taken at its next look; four threads on four cores."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(spinning, "SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(spinning.OtherProcesses, "busy_cores", lambda self: taken[0])
    taken, watcher, before = [0.0], Spinning(), threading.active_count()

    def look(cores):
        taken[0] = cores
        watcher.look()
        return threading.active_count() - before

    yield look
    watcher.allow()


def test_it_follows_what_others_do(looking):
    assert [looking(cores) for cores in (0.0, 1.0, 2.0, 0.1, 1.0)] == [0, 1, 1, 0, 1]


def test_there_are_more_threads_than_cores_then(looking, monkeypatch):
    """Two threads on four cores lack three more: three teams of two, of which one each is an idle thread."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert looking(3.0) == 3


def test_one_thread_waits_for_nobody(looking, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert looking(4.0) == 0


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_environment_says_stays(looking, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert looking(1.0) == 0


def test_it_looks_only_now_and_then(looking, monkeypatch):
    monkeypatch.setattr(spinning, "SECONDS_BETWEEN_LOOKS", 1000)
    assert looking(1.0) == 0


@pytest.mark.skipif(sys.platform != "linux" or len(usable_cores()) < 2, reason="GNU's OpenMP, on two cores")
def test_waiting_costs_nothing_while_spinning_is_forbidden():
    said = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in said}
    result = subprocess.run(
        [sys.executable, "-c", WASTE], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    spinning_, forbidden, allowed = map(float, result.stdout.split())
    assert forbidden < min(spinning_, allowed) / 5
