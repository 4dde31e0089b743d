"""Processes that train together: how they find each other, and what they sum."""

import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

from training.words import counted


class World(NamedTuple):
    """This process among all.

    Attributes:
        device: Where this process computes.
        rank: Its number, from 0.
        size: How many processes train together.
        group: Over which they agree, if not over the same as gradients: on GPUs, nobody would be told of a process that
            died while others wait for it.
    """

    device: torch.device
    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and saves for all."""
        return self.rank == 0


def launched() -> bool:
    """Whether torchrun, torch.distributed.launch or srun started this process."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def relaunch(world_size: int, dist_url: str) -> None:
    """Start this very command again as world_size processes on this machine, by torchrun; doesn't return.

    Raises:
        ValueError: A dist_url other than env:// and tcp://HOST:PORT.
    """
    if dist_url == "env://":
        meeting = ["--standalone"]
    else:
        host, colon, port = dist_url.removeprefix("tcp://").rpartition(":")
        if not dist_url.startswith("tcp://") or not colon or not port.isdigit():
            raise ValueError(f"--dist_url {dist_url}: must be env:// or tcp://HOST:PORT")
        meeting = ["--master-addr", host, "--master-port", port]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world_size}", *meeting, *sys.argv]
    os.execv(command[0], command)


def init_world(device: str | None) -> World:
    """Join the other processes that a launcher started, if it did, and choose this process's device.

    Gradients go over nccl between GPUs, all else over gloo.

    Raises:
        ValueError: A device that PyTorch doesn't know or that isn't there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {error}") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: must be cpu, cuda or cuda:N")
    if kind == "cuda":
        check_gpu(device)
    world = init_distributed_device_so(device)
    group = dist.new_group(backend="gloo") if world["distributed"] and kind == "cuda" else None
    return World(torch.device(world["device"]), world["global_rank"], world["world_size"], group)


def check_gpu(device: str) -> None:
    """ValueError where this process's GPU isn't there."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if not found:
        raise ValueError(f"--device {device}: PyTorch finds no CUDA GPU here")
    if (torch.device(device).index or local_rank) >= found:
        raise ValueError(f"--device {device}, local process {local_rank}: this machine has {counted(found, 'GPU')}")


# gloo's thread lets go of a tensor a bit after the sum is there. Were it the last to, it would delete a Python object,
# and a loading process forked in that very moment would find a lock of Python's taken: the likely reason for a hang
# that was seen once with Python 3.11.
_last_reduced: list[torch.Tensor] = []


def all_reduce(values: list[float], world: World, op: str = "SUM") -> list[float]:
    """Combine numbers over all processes, by SUM, MIN or MAX."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)  # so that counts and bytes stay exact
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op), group=world.group)
    _last_reduced[:] = [tensor]
    return tensor.tolist()


def last_process(condition: torch.Tensor, world: World) -> torch.Tensor:
    """The highest number of a process where a bool [] on the device holds, -1 where there is none.

    The answer is on the device, and on a GPU nothing waits for it.
    """
    found = torch.where(condition, world.rank, -1)
    if world.size > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        _last_reduced[:] = [found]
    return found


def from_main(value: float, world: World) -> float:
    """What the main process has found, for all to go by."""
    return all_reduce([value if world.is_main else 0.0], world)[0]


def meet(world: World) -> None:
    """Wait until every process is about to take the same step, where they compute on GPUs.

    GPUs may be behind: it is about a process that died or was told to stop, which is missed here, before a step that
    would wait for it for ever. On CPUs, gradients show it.
    """
    if world.group is not None:
        barrier(world)


def main_process_first(world: World, build):
    """Call build() on the main process, then, when that is done, on the others: what it downloads, they find."""
    if world.is_main:
        try:
            result = build()
        finally:  # also where it fails: the others then meet the same error instead of waiting for ever
            barrier(world)
        return result
    barrier(world)
    return build()


def barrier(world: World) -> None:
    """Wait until every process is here."""
    if world.size > 1:
        dist.barrier(group=world.group)


def be_deterministic() -> None:
    """Let PyTorch take only algorithms that give the same bits every time; where there is none, it raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's matrix products need for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
