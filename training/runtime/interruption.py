"""Catch signals that ask to stop, from a scheduler, Ctrl-C or a closing terminal, and stop between two steps."""

import signal
from collections.abc import Iterable, Iterator


class InterruptedTraining(BaseException):
    """Report that a signal asked to stop while no step is half done.

    It is not an Exception because it may be raised in the middle of loading a batch: a decoder of images takes every
    Exception for a broken image.
    """


class Interruption:
    """Listen for signals that ask to stop, inside a `with` block; a second signal ends the process at once.

    A closing terminal may send SIGHUP twice, from the system and from its shell, so every SIGHUP after the first signal
    is ignored. Under nohup, the first SIGHUP is ignored too.

    Attributes:
        signal: The name of the signal that came, or an empty text.
    """

    def __enter__(self) -> "Interruption":
        self.signal, self._waiting = "", False
        heard = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            heard.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number).name
        for other in self._handlers:
            signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else signal.SIG_DFL)
        # Loading processes often get the signal too: PyTorch would raise when they die, maybe in the middle of a step.
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        if self._waiting:
            raise InterruptedTraining

    def between(self, batches: Iterable) -> "Interruptible":
        """Return the same batches; they raise InterruptedTraining if a signal comes before or while one is awaited."""
        return Interruptible(batches, self)

    @property
    def exit_code(self) -> int:
        """Return the exit code that a shell reports for a process that this signal ended."""
        return 128 + signal.Signals[self.signal]


class Interruptible:
    """Iterate over batches, as `Interruption.between` describes."""

    def __init__(self, batches: Iterable, interruption: Interruption) -> None:
        self.batches, self.interruption = batches, interruption

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        batches = iter(self.batches)
        while True:
            self.interruption._waiting = True
            try:
                if self.interruption.signal:
                    raise InterruptedTraining
                batch = next(batches, None)
            finally:
                self.interruption._waiting = False
            if batch is None:
                return
            yield batch
