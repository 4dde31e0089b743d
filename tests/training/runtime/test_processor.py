"""Who kept the cores busy: this process and what it started, or others. Whatever else runs, more is found, not less."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from training.records import console
from training.runtime import processor, threads
from training.runtime.processor import OtherProcesses, busy_cores, busy_seconds, family_seconds
from training.runtime.threads import usable_cores

linux = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the processor's times come from Linux")


@contextmanager
def busy_process():
    """A process that keeps one core busy, once it runs."""
    program = "print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def seconds_of(process):
    return family_seconds(process.pid)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@linux
def test_a_busy_process_keeps_cores_busy():
    with busy_process():
        assert busy_cores(usable_cores(), 0.5) > 0.5


@linux
def test_a_family_is_a_process_and_its_children_also_those_that_ended():
    before = family_seconds(os.getpid())
    with busy_process() as process:
        wait_until(lambda: seconds_of(process) > 0.3)
        assert family_seconds(os.getpid()) - before >= 0.3
    assert family_seconds(os.getpid()) - before >= 0.3
    assert seconds_of(process) == 0


@linux
def test_what_a_process_starts_is_its_own_and_what_others_start_is_not():
    """Of the same busy process: for this one, its parent, it is no other."""
    with busy_process() as process:
        ours, theirs = OtherProcesses(usable_cores(), os.getpid()), OtherProcesses(usable_cores(), 0x7FFFFFFF)
        before = seconds_of(process)
        wait_until(lambda: seconds_of(process) - before > 0.5)
        own, start = seconds_of(process) - before, theirs.start
        found = theirs.busy_cores(), ours.busy_cores()
        took = own / (time.perf_counter() - start)
    assert found[0] - found[1] > took * 0.7


def test_columns_of_proc_stat(monkeypatch):
    """user nice system idle iowait irq softirq steal guest guest_nice, in hundredths of a second."""
    text = "cpu 9 9 9 9\ncpu0 100 20 3 9000 50 4 5 6 77 88\ncpu1 1000 0 0 1 1 0 0 0 0 0\nintr 5\n"
    monkeypatch.setattr(processor, "_read", lambda path: text)
    monkeypatch.setattr(processor, "TICKS", 100)
    assert busy_seconds([0]) == pytest.approx(1.38)
    assert busy_seconds([0, 1]) == pytest.approx(11.38)


def test_nobody_is_found_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(processor, "_read", lambda path: "")
    assert busy_cores([0], 0.01) == 0
    assert OtherProcesses([0], os.getpid()).busy_cores() == 0


@pytest.mark.parametrize(
    ("others", "computing", "processes", "cores", "shared"),
    [
        (0.1, 2, 1, 2, False),
        (0.9, 2, 1, 2, True),
        (0.9, 1, 1, 2, False),  # there was a core for each
        (0.9, 1, 2, 2, True),
        (30.0, 8, 1, 64, False),
        (60.0, 8, 1, 64, True),
    ],
)
def test_an_epoch_says_that_the_processor_was_shared(monkeypatch, others, computing, processes, cores, shared):
    monkeypatch.setattr(torch, "get_num_threads", lambda: computing)
    for module in (console, threads):
        monkeypatch.setattr(module, "usable_cores", lambda: list(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    record = dict.fromkeys(
        "epoch train_loss test_acc1 train_seconds data_seconds images_per_second peak_memory_mb training_memory_mb"
        " cores_of_others".split(),
        0,
    )
    line = console.describe_epoch(record | {"cores_of_others": others}, 3, 0.0, 0.0)
    assert (f", processor shared: other processes took {others:.1f} of {cores} cores" in line) == shared
