"""Prepare a process that computes, before it imports PyTorch."""

from training.runtime.heap import keep_freed_memory
from training.runtime.threads import prepare_threads


def prepare_process() -> None:
    """Share out the cores, and keep freed memory for the next step."""
    prepare_threads()
    keep_freed_memory()
