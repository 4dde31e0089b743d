"""Prepare a process that computes: what must be set before PyTorch is imported, and before its threads start."""

from training.runtime.heap import keep_freed_memory
from training.runtime.threads import prepare_threads


def prepare_process() -> None:
    """Share out the cores, keep freed memory for the next step, take denormal numbers as zero, and import PyTorch."""
    prepare_threads()
    keep_freed_memory()
    flush_denormals()


def flush_denormals() -> None:
    """Take numbers too small for a whole mantissa as zero, in this thread and those that it starts from now on.

    Gradients that decay over a long sequence end there, and Intel's processors take a hundred times as long over them.
    """
    import numpy as np
    import torch  # only now, since OpenMP reads the settings of threads when it is imported

    np.finfo(np.float32), np.finfo(np.float64)  # found now, or older versions would warn that the smallest are zero
    torch.set_flush_denormal(True)
