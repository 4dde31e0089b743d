"""SIGTERM, as a scheduler sends it before it takes the machine, and Ctrl-C: heard now, obeyed between two steps."""

import signal


class Interruption:
    """Listens for SIGTERM and SIGINT inside a `with` block; a second one ends the process at once.

    Attributes:
        signal: The name of the one that came, or nothing.
    """

    def __enter__(self) -> "Interruption":
        self.signal = ""
        self._handlers = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number).name
        for either in self._handlers:
            signal.signal(either, signal.SIG_DFL)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended."""
        return 128 + signal.Signals[self.signal]
