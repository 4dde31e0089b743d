"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is off."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import training.runtime.progress
from training.runtime.progress import Progress


def use_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_all_steps_pass(capsys):
    assert list(Progress(range(5), "epoch 0")) == list(range(5))
    assert capsys.readouterr() == ("", "")  # quick work needs no line


def test_long_work_says_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(training.runtime.progress, "SECONDS_BETWEEN_LINES", -1)
    progress = Progress(range(2), "epoch 7")
    for step in progress:
        progress.note = f"loss {step}"
    assert capsys.readouterr().out.splitlines() == [
        "epoch 7: step 1/2, 0:00:00 left, loss 0",
        "epoch 7: step 2/2, 0:00:00 left, loss 1",
    ]


def test_lines_estimate_the_time_that_is_left(capsys, monkeypatch):
    clock = iter([0.0, 60.0, 120.0, 180.0])
    monkeypatch.setattr(training.runtime.progress.time, "monotonic", lambda: next(clock))
    list(Progress(range(3), "epoch 7"))
    assert [line.split(",")[1] for line in capsys.readouterr().out.splitlines()] == [
        f" 0:0{n}:00 left" for n in (2, 1, 0)
    ]


def test_streams_have_no_total(capsys, monkeypatch):
    monkeypatch.setattr(training.runtime.progress, "SECONDS_BETWEEN_LINES", -1)
    list(Progress(iter(range(1)), "epoch 7"))
    assert capsys.readouterr().out.startswith("epoch 7: step 1 ")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    use_terminal(monkeypatch)
    assert list(Progress(range(3), "epoch 1")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "epoch 1" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("size", [(24, 100), (24, 0), (0, 100), (0, 0)])
def test_the_bar_shows_in_a_terminal_of_any_size(size):
    """In a real terminal, which says its rows and columns; 0 for those that it doesn't know."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    program = """
from training.runtime.progress import Progress
progress = Progress(range(3), "epoch 1")
for step in progress:
    progress.note = f"loss {step}"
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TQDM_MININTERVAL": "0"}
    subprocess.run(
        [sys.executable, "-c", program], stderr=theirs, env=environment, cwd=Path(__file__).parents[3], check=True
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert " 3/3 [" in shown
    assert "loss 2]" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_off_is_silent(capsys, monkeypatch, terminal):
    if terminal:
        use_terminal(monkeypatch)
    monkeypatch.setattr(training.runtime.progress, "SECONDS_BETWEEN_LINES", -1)
    assert list(Progress(range(3), "epoch 1", enabled=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
