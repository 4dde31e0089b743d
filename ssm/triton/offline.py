"""Compile kernels without a GPU, and read from the machine code what they need."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _NoGPU:
    """A driver for a GPU that is not there: it says what to compile for, and can't run anything."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(capability: int) -> Iterator[list]:
    """Inside, every launch compiles its kernel for a GPU (80: A100, 90: H100 and H200) and runs nothing.

    Yields:
        A list that gets every kernel that is launched, in this order.
    """
    run, active, launched = JITFunction.run, triton.runtime.driver._active, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launched.append(kernel)
        return kernel

    triton.runtime.driver.set_active(_NoGPU(capability))
    JITFunction.run = compile_only
    try:
        yield launched
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = active


def tool(name, kernel, *options):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([BINARIES / name, *options, file.name], check=True, capture_output=True, text=True).stdout
