"""A run's output directory belongs to one process at a time, and what a run has logged is not lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
import runner
from training.records.logbook import Logbook
from training.records.runs import read_log

ROOT = Path(__file__).parents[1]
PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8".split()


@pytest.fixture
def run(images):
    """Run main.py in this process on the small folder."""
    return lambda *flags: main.main(["--data-set", "FOLDER", "--data-path", str(images), *PLAIN, *map(str, flags)])


@pytest.mark.parametrize("more", [(), ("--eval", "--resume", "{checkpoint}"), ("--check",)])
def test_a_run_that_never_began_leaves_no_directory(error, trained, tmp_path, more):
    more = [word.format(checkpoint=trained / "checkpoint.pth") for word in more]
    error("--data-set", "FOLDER", "--data-path", tmp_path / "missing", "--output_dir", tmp_path / "new" / "run", *more)
    assert not (tmp_path / "new").exists()


def test_a_run_that_never_began_leaves_a_directory_that_was_there(error, tmp_path):
    (tmp_path / "run").mkdir()
    error("--data-set", "FOLDER", "--data-path", tmp_path / "missing", "--output_dir", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


HOLD = """
import os, sys, time
from pathlib import Path
from training.records.lock import locked

with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)  # as loading processes live on for a while where their parent is killed
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the directory, with a child of its own; returns its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    yield process
    process.kill()
    process.wait()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def test_a_directory_is_one_processs_alone_until_it_dies(run, error, holder, tmp_path):
    for flags in ((), ("--auto-resume",), ("--check",)):
        line = error("--epochs", 1, "--output_dir", tmp_path, *flags)
        assert line.startswith(f"main.py: error: --output_dir {tmp_path}: ")
        assert f"process {holder.pid}" in line
    assert os.listdir(tmp_path) == [".lock"]
    holder.kill()
    holder.wait()
    run("--epochs", 1, "--output_dir", tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0]
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_no_obstacle(run, tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    run("--epochs", 1, "--output_dir", tmp_path)


@pytest.mark.parametrize("epochs", [[0, 1, 1], [0, 1, 0, 1], [3, 2]])
def test_epochs_that_do_not_increase_are_refused(error, tmp_path, epochs):
    log = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in epochs)
    (tmp_path / "log.txt").write_text(log)
    line = error("--auto-resume", "--output_dir", tmp_path)
    assert f"log.txt: line {len(epochs) if epochs != [0, 1, 0, 1] else 3}: epoch" in line
    assert (tmp_path / "log.txt").read_text() == log


def test_a_log_whose_checkpoints_are_gone_is_not_erased(run, error, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path)
    best = (tmp_path / "best_checkpoint.pth").read_bytes()
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        (tmp_path / name).unlink()
    log = (tmp_path / "log.txt").read_bytes()
    line = error("--epochs", 1, "--seed", 1, "--auto-resume", "--output_dir", tmp_path)
    assert "--auto-resume: " in line
    assert "log.txt" in line
    assert (tmp_path / "log.txt").read_bytes() == log
    (tmp_path / "best_checkpoint.pth").write_bytes(best)
    run("--epochs", 2, "--auto-resume", "--output_dir", tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0, 1]


@pytest.mark.parametrize("die", ["train_one_epoch", "save_epoch"])
def test_a_run_that_starts_again_from_an_older_checkpoint_goes_on_from_there(run, tmp_path, monkeypatch, capsys, die):
    """Even if it stops at once: what it gave up doesn't come back."""
    old, whole = tmp_path / "old", tmp_path / "whole"
    flags = ("--epochs", 3, "--checkpoint-hist", 3, "--lr", 1e-2)
    run("--epochs", 3, "--checkpoint-hist", 3, "--output_dir", old)
    shutil.copytree(old, whole)
    run(*flags, "--resume", whole / "checkpoint-0.pth", "--output_dir", whole)
    assert f"{whole}: trains again from epoch 1, step 0; gives up what came after it\n" in capsys.readouterr().out

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, die, stop)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, "--resume", old / "checkpoint-0.pth", "--output_dir", old)
    capsys.readouterr()
    run(*flags, "--auto-resume", "--output_dir", old)
    assert "gives up" not in capsys.readouterr().out
    assert [line["epoch"] for line in read_log(old / "log.txt")] == [0, 1, 2]
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (old, whole))
        assert a["epoch"] == b["epoch"]
        torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)


def test_a_best_checkpoint_is_a_run_too(run, error, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path)
    for name in ("checkpoint.pth", "log.txt"):
        (tmp_path / name).unlink()
    assert "holds a run already" in error("--epochs", 1, "--output_dir", tmp_path)


def test_killed_right_after_its_first_line_a_run_goes_on(run, tmp_path, monkeypatch):
    write = Logbook.write

    def write_and_die(self, epoch):
        write(self, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(Logbook, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run("--epochs", 2, "--output_dir", tmp_path)
    monkeypatch.setattr(Logbook, "write", write)
    run("--epochs", 2, "--auto-resume", "--output_dir", tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0, 1]


def test_lines_of_an_older_run_without_a_column_end_nothing(run, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path / "run")
    for column in ("train_seconds", "training_memory_mb", "test_acc1"):
        folder = tmp_path / column
        shutil.copytree(tmp_path / "run", folder)
        (line,) = read_log(folder / "log.txt")
        (folder / "log.txt").write_text(json.dumps({name: line[name] for name in line if name != column}) + "\n")
        run("--epochs", 2, "--auto-resume", "--output_dir", folder)
        assert [line["epoch"] for line in read_log(folder / "log.txt")] == [0, 1]
