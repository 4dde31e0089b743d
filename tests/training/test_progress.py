"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is off."""

import sys

import pytest

import training.progress
from training.progress import Progress


def use_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_all_steps_pass(capsys):
    assert list(Progress(range(5), "epoch 0")) == list(range(5))
    assert capsys.readouterr() == ("", "")  # quick work needs no line


def test_long_work_says_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(training.progress, "SECONDS_BETWEEN_LINES", -1)
    progress = Progress(range(2), "epoch 7")
    for step in progress:
        progress.note = f"loss {step}"
    assert capsys.readouterr().out.splitlines() == ["epoch 7: step 1/2 loss 0", "epoch 7: step 2/2 loss 1"]


def test_streams_have_no_total(capsys, monkeypatch):
    monkeypatch.setattr(training.progress, "SECONDS_BETWEEN_LINES", -1)
    list(Progress(iter(range(1)), "epoch 7"))
    assert capsys.readouterr().out.startswith("epoch 7: step 1 ")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    use_terminal(monkeypatch)
    assert list(Progress(range(3), "epoch 1")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "epoch 1" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_off_is_silent(capsys, monkeypatch, terminal):
    if terminal:
        use_terminal(monkeypatch)
    monkeypatch.setattr(training.progress, "SECONDS_BETWEEN_LINES", -1)
    assert list(Progress(range(3), "epoch 1", enabled=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
