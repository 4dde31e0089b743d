"""Signals that ask to stop: heard at once, obeyed between two steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.runtime.interruption import InterruptedTraining, Interruption


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def number(request):
    """A signal that isn't ignored, even if the tests themselves run under nohup."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_between_two_steps(number):
    with Interruption() as interruption:
        steps = iter(interruption.between([1, 2]))
        assert next(steps) == 1
        os.kill(os.getpid(), number)
        assert interruption.signal == number.name
        with pytest.raises(InterruptedTraining):
            next(steps)
        os.kill(os.getpid(), signal.SIGHUP)  # a closing terminal's shell says it again
        assert interruption.exit_code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_under_nohup_the_end_of_the_terminal_is_not_heard(tmp_path):
    program = (
        "import os, signal; from training.runtime.interruption import Interruption\n"
        "with Interruption() as i: os.kill(os.getpid(), signal.SIGHUP); print([i.signal])"
    )
    found = subprocess.run(
        ["nohup", sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert found.stdout == "['']\n"
