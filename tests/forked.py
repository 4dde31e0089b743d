"""main.py in processes that start without the seconds that PyTorch's import takes: all fork from one that has it."""

import multiprocessing
import os
import signal
import sys

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "sklearn.datasets", "sklearn.model_selection"])


class Forked:
    """A process that runs main.py, with what tests use of subprocess.Popen.

    Args:
        flags: The command line after main.py.
    """

    def __init__(self, flags: list[str]) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run, args=(flags, writer))
        self._process.start()
        writer.close()
        self.pid, self.stdout = self._process.pid, os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
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


def _run(flags: list[str], output) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    multiprocessing.set_start_method(None, force=True)  # its own processes start as those of any other
    import main

    sys.argv = ["main.py", *flags]
    main.main()
