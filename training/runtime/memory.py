"""Measure memory: the peak of an epoch, on the GPU or of the process, and what autograd keeps of a forward pass."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from training.runtime.heap import give_back_freed_memory

MB = 2**20


class PeakMemory:
    """Measure the largest memory in use since the last reset.

    On a GPU it is the memory of PyTorch's tensors. On a CPU it is the resident size of this process. Linux can reset
    this peak; on other systems it is the peak of the whole run, and `resets` is False.

    Args:
        device: The device to watch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resets = True
        self.baseline_mb = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        give_back_freed_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.resets = False

    def start_training(self, held_mb: float = 0.0) -> None:
        """Set the baseline to the memory in use now, less held_mb, the MB that earlier steps left in use."""
        give_back_freed_memory()
        self.baseline_mb = self._current_mb() - held_mb

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave what this context leaves in use out of the memory of training."""
        give_back_freed_memory()
        before = self._current_mb()
        yield
        give_back_freed_memory()
        self.baseline_mb += max(0.0, self._current_mb() - before)

    def peak_mb(self) -> float:
        """Return the largest memory in use since the reset, in MB of 2**20 bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        if self.resets:
            return _status_mb("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def training_mb(self) -> float:
        """Return the peak less the baseline, in MB: the memory that activations, gradients and optimizer need."""
        return max(0.0, self.peak_mb() - self.baseline_mb)

    def _current_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MB
        return _status_mb("VmRSS") if self.resets else self.peak_mb()


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def kept_mib(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Return the MiB that autograd saves of a forward pass for the backward pass, beside the parameters.

    Args:
        model: With `layers` and `grad_checkpointing`; a layer takes a tuple with tensors in it.
        loss: Runs the model forward.
    """
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(block: nn.Module, inputs: tuple[tuple]) -> None:
        for tensor in filter(torch.is_tensor, inputs[0]):
            keep(tensor)

    # Layers that are recomputed save their inputs where no hook of autograd sees it.
    blocks = model.layers if model.grad_checkpointing else []
    handles = [block.register_forward_pre_hook(keep_input) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss()  # while it lives, no storage's address is used again
    for handle in handles:
        handle.remove()
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del held
    return sum(storages.values()) / MB
