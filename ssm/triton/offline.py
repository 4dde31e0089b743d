"""Compile kernels without a GPU, and read their registers, memory and instructions from the machine code."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Needs(NamedTuple):
    """Hold what a compiled kernel needs.

    Attributes:
        registers: Registers of a thread.
        shared: Shared memory of a program, in bytes.
        spilled: Instructions that move values from registers to memory and back, because registers were too few.
        issued: Instructions of a warp in its loop over tokens, or in the whole kernel if it has no loop.
        special: Those of them for exponentials and reciprocals, of which a processor computes 16 in a clock, against
            128 products.
    """

    registers: int
    shared: int
    spilled: int
    issued: int
    special: int


class _NoGPU:
    """Stand in for the driver of a GPU: say what to compile for, and run nothing."""

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
    """Make every launch inside compile its kernel for a GPU (80: A100, 90: H100 and H200) and run nothing.

    Yields:
        A list of the launched kernels, in order; a kernel that was compiled before is the same object.
    """
    run, drivers, launched = JITFunction.run, dict(vars(triton.runtime.driver)), []

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
        vars(triton.runtime.driver).update(drivers)


def needs(kernel) -> Needs:
    """Read what a compiled kernel needs from its machine code, with the tool that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = int(re.search(r"\bREG:(\d+)", text).group(1))
    code = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", text)]
    spilled = sum(bool(re.search(r"\b(LDL|STL)\b", what)) for _, what in code)
    loop = [what for what in _longest_loop(code) if "NOP" not in what]
    return Needs(registers, kernel.metadata.shared, spilled, len(loop), sum("MUFU" in what for what in loop))


def _longest_loop(code: list[tuple[int, str]]) -> list[str]:
    """Return the instructions of the longest loop, up to its branch back; all before the exit if there is no loop."""
    branches = [(at, re.search(r"\bBRA\b.*0x([0-9a-f]+)", what)) for at, what in code]
    loops = [(int(to.group(1), 16), at) for at, to in branches if to and int(to.group(1), 16) < at]
    end = next((at for at, what in code if "EXIT" in what and not what.startswith("@")), code[-1][0])
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, end))
    return [what for at, what in code if first <= at <= last]
