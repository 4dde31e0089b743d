"""Join the processes that train together, and combine their numbers."""

import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env

from training.words import counted


class World(NamedTuple):
    """Describe this process among all that train together.

    Attributes:
        device: Where this process computes.
        rank: This process's number, from 0.
        size: How many processes train together.
        group: The gloo group for everything but gradients, None if gradients use gloo too. It exists because nccl would
            not report a process that died while the rest wait for it.
    """

    device: torch.device
    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Return whether this process prints, logs and saves for all."""
        return self.rank == 0


def launched() -> bool:
    """Return whether torchrun, torch.distributed.launch or srun started this process.

    A shell within SLURM's allocation has the number of tasks too, but no address at which processes meet.
    """
    return "RANK" in os.environ or (int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "MASTER_ADDR" in os.environ)


def relaunch(world_size: int, dist_url: str) -> None:
    """Restart this command with torchrun as world_size processes on this machine; never return.

    Raises:
        ValueError: dist_url is neither env:// nor tcp://HOST:PORT.
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
    """Join the other processes if a launcher started several, and choose this process's device.

    Between GPUs, gradients are summed over nccl; everything else uses gloo.

    Raises:
        ValueError: PyTorch doesn't know the device, it isn't there, or processes can't meet.
    """
    if not launched():
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            raise ValueError("srun started several processes, which meet at MASTER_ADDR and MASTER_PORT: set both")
        os.environ.pop("SLURM_NTASKS", None)  # timm would wait for as many processes as the allocation has tasks
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {error}") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: must be cpu, cuda or cuda:N")
    if kind == "cuda":
        check_gpu(device)
    alone = kind == "cuda" and _sees_its_own_gpu_alone()
    if alone:
        os.environ["LOCAL_RANK"] = "0"  # timm takes the GPU of this number among those that the process sees
    world = init_distributed_device_so(device)
    if alone:
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    group = dist.new_group(backend="gloo") if world["distributed"] and kind == "cuda" else None
    return World(torch.device(world["device"]), world["global_rank"], world["world_size"], group)


def check_gpu(device: str) -> None:
    """Raise ValueError if this process's GPU isn't there: the one that the device names, if it trains alone."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if not found:
        raise ValueError(f"--device {device}: PyTorch finds no CUDA GPU here")
    index = local_rank if is_distributed_env() else torch.device(device).index or 0
    if index >= found and not _sees_its_own_gpu_alone():
        raise ValueError(f"--device {device}, local process {local_rank}: this machine has {counted(found, 'GPU')}")


def _sees_its_own_gpu_alone() -> bool:
    """Return whether srun gave this process a GPU of its own, as --gpus-per-task does, and hid those of the others."""
    given = bool({"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND"} & os.environ.keys())
    return given and "LOCAL_RANK" not in os.environ and torch.cuda.device_count() == 1


# gloo's thread releases a tensor shortly after its sum is ready. If it held the last reference, it would delete a
# Python object, and a loading process forked at that moment would inherit a lock of Python's as taken: the likely
# reason for a hang that was seen once with Python 3.11. So the last tensor is kept here.
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
    """Return the highest rank on which the condition, a bool [] on the device, is true; -1 if it is true on no rank.

    The answer stays on the device, so nothing waits for a GPU.
    """
    found = torch.where(condition, world.rank, -1)
    if world.size > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        _last_reduced[:] = [found]
    return found


def from_main(value: float, world: World) -> float:
    """Return the main process's value on every process."""
    return all_reduce([value if world.is_main else 0.0], world)[0]


def meet(world: World) -> None:
    """Wait until every process is about to take the same step, if they compute on GPUs.

    A process that died or was told to stop is missed here, before a step that would wait for it forever. The GPUs
    themselves may be behind. On CPUs nothing is done: summing gradients already fails if a process is missing.
    """
    if world.group is not None:
        barrier(world)


def main_process_first(world: World, build):
    """Return build() of each process, called on the main process first, so that the rest find what it downloaded."""
    if world.is_main:
        try:
            result = build()
        finally:  # even if it fails: the rest then meet the same error instead of waiting forever
            barrier(world)
        return result
    barrier(world)
    return build()


def barrier(world: World) -> None:
    """Wait until every process is here."""
    if world.size > 1:
        dist.barrier(group=world.group)


def be_deterministic() -> None:
    """Let PyTorch use only algorithms that give the same bits every time, and raise if an operation has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
