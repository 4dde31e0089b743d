"""Compile a package's C++ operations at their first use, into PyTorch's extension cache."""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

# No -ffast-math: it may fold away the rounding trick of the exponential.
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno"]


def load_library(room: Path, what: str, flags: Sequence[str] = ()) -> None:
    """Load the operations in a package's csrc/ into torch.ops.vim, compiling them first unless the cache has them.

    If several processes call it, one compiles while the rest wait.

    Args:
        room: The package's folder.
        what: What the operations do, for messages that speak of "the C++ WHAT".
        flags: Compiler flags in addition to FLAGS.

    Raises:
        RuntimeError: There is no compiler, it fails, or the library can't be saved or loaded; one line says why.
    """
    try:
        sources, flags = room / "csrc", [*FLAGS, *flags]
        folder = cache_directory() / f"vim_{room.name}_{_fingerprint(sources, flags)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            library = folder / f"{folder.name}.so"
            if _is_sound(library):
                torch.ops.load_library(library)
            else:
                _compile(folder, sources, flags, what)
                _checksum_file(library).write_text(_checksum(library))
    except OSError as error:
        raise RuntimeError(f"the C++ {what} can't be kept or loaded: {error}") from None


def cache_directory() -> Path:
    """Return PyTorch's cache of extensions, without importing PyTorch's builder, which takes a second."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or home / "torch_extensions")


def _fingerprint(sources: Path, flags: Sequence[str]) -> str:
    """Hash what a build depends on: sources, compiler flags, PyTorch and the processor's instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = [line for line in lines if line.startswith(("flags", "Features"))][:1] or [platform.processor()]
    parts = [torch.__version__, platform.machine(), *processor, *flags]
    parts += [path.read_text() for path in sorted(sources.iterdir())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path):
    """Hold a lock that the system releases if this process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sound(library: Path) -> bool:
    """Return whether the library is complete, as it was built: loading half of one could kill the process."""
    stamp = _checksum_file(library)
    return library.exists() and stamp.exists() and stamp.read_text() == _checksum(library)


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _compile(folder: Path, sources: Path, flags: Sequence[str], what: str) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns if there is no GPU
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if not shutil.which(compiler):
        raise RuntimeError(f"no C++ compiler ({compiler}): apt-get install g++")
    # pip's ninja is in this Python's folder, which is on the path only if the environment is activated.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
    if not shutil.which("ninja"):
        raise RuntimeError("no ninja: pip install ninja")
    print(f"compiling the C++ {what}, once for this machine (one to two minutes) ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)  # leftovers of an interrupted build
    folder.mkdir()
    try:
        cpp_extension.load(
            name=folder.name,
            sources=[str(path) for path in sorted(sources.glob("*.cpp"))],
            extra_cflags=flags,
            build_directory=str(folder),
            is_python_module=False,
        )
    except (RuntimeError, subprocess.CalledProcessError) as error:
        errors = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise RuntimeError(f"the C++ {what} doesn't compile: {errors[-1].strip()}") from None
    print(f"compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
