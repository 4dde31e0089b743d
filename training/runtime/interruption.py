"""Signals that ask to stop, from a scheduler, Ctrl-C or a closing terminal: heard at once, obeyed between two steps."""

import signal
from collections.abc import Iterable, Iterator


class InterruptedTraining(BaseException):
    """A signal asked to stop, and no step is half done.

    No Exception: it comes in the middle of whatever is done then, as in a decoder of images, whose every Exception is
    taken for a broken image.
    """


class Interruption:
    """Listens for signals that ask to stop, inside a `with` block; a second one ends the process at once.

    A terminal that closes may say so twice, by the system and by its shell: further SIGHUPs count for nothing, and
    under nohup the first doesn't either.

    Attributes:
        signal: The name of the one that came, or nothing.
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
        # Loading processes often get the signal too: PyTorch would raise at their death, maybe in the middle of a step.
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        if self._waiting:
            raise InterruptedTraining

    def between(self, batches: Iterable) -> "Interruptible":
        """The same batches, but where one is asked for after a signal, or waited for, InterruptedTraining."""
        return Interruptible(batches, self)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended."""
        return 128 + signal.Signals[self.signal]


class Interruptible:
    """What `Interruption.between` gives."""

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
