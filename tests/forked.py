"""Processes that start without the seconds that PyTorch's import takes: all fork from one that has it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "sklearn.datasets", "sklearn.model_selection"])


def main_py(*flags: str) -> None:
    """Run main.py."""
    import main

    sys.argv = ["main.py", *flags]
    main.main()


class Forked:
    """A process that runs main.py, with what tests use of subprocess.Popen.

    Args:
        flags: The command line after main.py.
        run: What runs with these words instead of main.py: a function of a module.
        environment: Variables that it finds beside those of the tests.
    """

    def __init__(self, flags: list[str], run: Callable = main_py, **environment: str) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_start, args=(run, flags, environment, writer))
        self._process.start()
        writer.close()
        self.pid, self.stdout = self._process.pid, os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed on both streams until it ended."""
        with self.stdout:
            printed = self.stdout.read()
        self.wait(timeout)
        return printed, None


def together(count: int, flags: list[str], run: Callable = main_py) -> str:
    """What processes of one training print, started as a launcher starts them; AssertionError if one fails."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port, as torchrun keeps it
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    meeting |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = [Forked(flags, run, RANK=str(rank), LOCAL_RANK=str(rank), **meeting) for rank in range(count)]
    printed = "".join(process.communicate(timeout=240)[0] for process in processes)
    assert [process.returncode for process in processes] == [0] * count, printed
    return printed


def _start(run: Callable, flags: list[str], environment: dict[str, str], output) -> None:
    os.environ |= environment
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    multiprocessing.set_start_method(None, force=True)  # its own processes start as those of any other
    import torch

    torch.set_num_threads(1)  # small sums, and many processes
    run(*flags)
