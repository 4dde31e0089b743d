"""Devices and meeting places. Several real processes are started in tests/test_launch.py."""

import os
import sys
from contextlib import nullcontext

import pytest
import torch

from training.runtime import distributed
from training.runtime.distributed import (
    World,
    all_reduce,
    check_gpu,
    init_world,
    launched,
    main_process_first,
    relaunch,
)

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
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert not launched()
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a batch job or shell, in which nothing started several processes
    assert not launched()
    monkeypatch.setenv("SLURM_NTASKS", "2")  # still only a shell, until srun's processes are told where to meet
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert not launched()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert launched()
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("RANK", "0")
    assert launched()


def test_in_a_shell_of_slurm_a_program_is_alone(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # of which a variable is taken out
    assert init_world("cpu").size == 1
    monkeypatch.setattr(os, "environ", os.environ | {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"})
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT"):
        init_world("cpu")


@pytest.mark.parametrize(
    ("device", "local_rank", "found", "complaint"),
    [
        ("cuda", 0, 0, "--device cuda: PyTorch finds no CUDA GPU here"),
        ("cuda:7", 0, 2, "--device cuda:7, local process 0: this machine has 2 GPUs"),
        ("cuda", 3, 2, "--device cuda, local process 3: this machine has 2 GPUs"),
        ("cuda", 1, 2, None),
        ("cuda:1", 0, 2, None),
        ("cuda:1", 3, 2, "--device cuda:1, local process 3: this machine has 2 GPUs"),
        ("cuda:7", 1, 2, None),  # each of several processes takes the GPU of its own number
    ],
)
@pytest.mark.parametrize("launcher", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_gpus_that_are_not_there(monkeypatch, launcher, device, local_rank, found, complaint):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(launcher, str(local_rank))
    monkeypatch.setenv("WORLD_SIZE", "4" if local_rank else "1")
    with nullcontext() if complaint is None else pytest.raises(ValueError, match=complaint):
        check_gpu(device)


def test_a_task_that_sees_its_own_gpu_alone_takes_it(monkeypatch):
    """As srun's --gpus-per-task hides the others."""
    task = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "MASTER_ADDR": "localhost"}
    task["SLURM_GPUS_PER_TASK"] = "1"
    others = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    monkeypatch.setattr(os, "environ", others | task)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed.dist, "new_group", lambda backend: None)

    def joined(device):
        index = os.environ["LOCAL_RANK"]
        return {"distributed": True, "device": f"cuda:{index}", "global_rank": 3, "world_size": 4}

    monkeypatch.setattr(distributed, "init_distributed_device_so", joined)
    assert init_world(None).device == torch.device("cuda:0")
    assert os.environ.pop("LOCAL_RANK") == "3"
    del os.environ["SLURM_GPUS_PER_TASK"]  # all tasks share what they see
    with pytest.raises(ValueError, match="local process 3: this machine has 1 GPU"):
        check_gpu("cuda")


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
