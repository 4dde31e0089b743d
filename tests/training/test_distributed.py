"""Devices and meeting places. Several real processes are started in tests/test_launch.py."""

import os
import sys

import pytest
import torch

from training import distributed
from training.distributed import World, all_reduce, init_world, launched, main_process_first, relaunch

ALONE = World(torch.device("cpu"), 0, 1)


@pytest.mark.parametrize("device", ["tpu", "gpu", "mps", "cpu:x"])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match=f"--device {device}: "):
        init_world(device)


def test_the_default_device_is_what_there_is():
    world = init_world(None)
    assert world.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)


def test_one_process_sums_alone():
    assert all_reduce([1.0, 2.0], ALONE) == [1.0, 2.0]
    assert main_process_first(ALONE, lambda: "built") == "built"


def test_launchers_are_noticed(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert not launched()
    monkeypatch.setenv("RANK", "0")
    assert launched()


@pytest.mark.parametrize(
    ("url", "meeting"),
    [("env://", ["--standalone"]), ("tcp://10.0.0.1:29501", ["--master-addr", "10.0.0.1", "--master-port", "29501"])],
)
def test_relaunching_repeats_the_command(monkeypatch, url, meeting):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    monkeypatch.setattr(sys, "argv", ["main.py", "--epochs", "1"])
    relaunch(3, url)
    expected = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=3",
        *meeting,
        "main.py",
        "--epochs",
        "1",
    ]
    assert started == [expected]


@pytest.mark.parametrize("url", ["http://x:1", "tcp://host", "tcp://host:port", "file:///tmp/x"])
def test_other_meeting_places_are_refused(url):
    with pytest.raises(ValueError, match="must be env:// or tcp://HOST:PORT"):
        relaunch(2, url)


def test_others_build_after_the_main_process(monkeypatch):
    events = []
    monkeypatch.setattr(distributed, "barrier", lambda world: events.append("barrier"))
    for rank in (0, 1):
        main_process_first(ALONE._replace(rank=rank, size=2), lambda: events.append("build"))
    assert events == ["build", "barrier", "barrier", "build"]


def test_a_failure_on_the_main_process_frees_the_others(monkeypatch):
    events = []
    monkeypatch.setattr(distributed, "barrier", lambda world: events.append("barrier"))
    with pytest.raises(ValueError, match="no data"):
        main_process_first(ALONE._replace(size=2), lambda: (_ for _ in ()).throw(ValueError("no data")))
    assert events == ["barrier"]
