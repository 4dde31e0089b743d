"""--val-interval: epochs without an evaluation; --checkpoint-hist: the checkpoints of the best epochs."""

import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
import runner
from scripts import summarize
from training.records.pace import seconds_left
from training.records.runs import read_log
from training.state import checkpoint, history

PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8 --warmup-epochs 0".split()


@pytest.fixture
def run(images, capsys, tmp_path):
    """Run main.py in this process on the small folder, into tmp_path / "out"; returns what it printed."""

    def call(*flags):
        data = ["--data-set", "FOLDER", "--data-path", images, "--output_dir", tmp_path / "out"]
        main.main([*map(str, data), *PLAIN, *map(str, flags)])
        return capsys.readouterr().out

    return call


@pytest.fixture
def scored(monkeypatch):
    """Let evaluations find these top-1, one after the other."""

    def score(*values):
        scores = iter(values)

        def evaluate(*args, **kwargs):
            return {"acc1": float(next(scores)), "seconds": 60.0} | dict.fromkeys(("loss", "acc5"), 0.0)

        monkeypatch.setattr(runner, "evaluate", evaluate)

    return score


@pytest.fixture
def timed(monkeypatch):
    """Let every epoch's training take 1.5 seconds, whatever the machine is busy with."""
    train = runner.train_one_epoch
    monkeypatch.setattr(runner, "train_one_epoch", lambda *args, **kw: train(*args, **kw) | {"train_seconds": 1.5})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def epochs_kept(out):
    return sorted(history.find(out))


# Epochs without an evaluation


@pytest.mark.parametrize(
    ("interval", "epochs", "evaluated"), [(2, 5, [1, 3, 4]), (3, 3, [2]), (9, 2, [1]), (1, 2, [0, 1])]
)
def test_every_nth_epoch_and_the_last_are_evaluated(run, out, interval, epochs, evaluated):
    printed = run("--epochs", epochs, "--val-interval", interval)
    log = read_log(out / "log.txt")
    assert [line["epoch"] for line in log] == list(range(epochs))
    assert [line["epoch"] for line in log if "test_acc1" in line] == evaluated
    assert len(re.findall(r"^epoch \d/\d: loss \S+, not evaluated, ", printed, re.M)) == epochs - len(evaluated)
    assert len(re.findall(r"^epoch \d/\d: loss \S+, top-1 ", printed, re.M)) == len(evaluated)


def test_the_weights_are_those_of_a_run_that_evaluates_more(run, tmp_path, out):
    run("--epochs", 3, "--val-interval", 3, "--drop-path", 0.3)
    run("--epochs", 3, "--drop-path", 0.3, "--output_dir", tmp_path / "often")
    rare, often = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (out, tmp_path / "often"))
    torch.testing.assert_close(rare["model"], often["model"], rtol=0, atol=0)
    assert rare["best_acc1"] == read_log(out / "log.txt")[-1]["test_acc1"]


def test_the_records_cope_with_epochs_without_scores(run, scored, timed, out, capsys, tmp_path):
    scored(30, 20)
    printed = run("--epochs", 3, "--val-interval", 2)
    assert re.search(r"^done: 3 epochs in 0:02:0\d; best top-1 30.00 % in epoch 1; ", printed, re.M)
    assert torch.load(out / "best_checkpoint.pth", weights_only=True)["epoch"] == 2
    board = EventAccumulator(str(out)).Reload()
    assert [entry.step for entry in board.Scalars("accuracy/test_acc1")] == [1, 2]
    assert [entry.step for entry in board.Scalars("loss/train_loss")] == [0, 1, 2]
    summarize.main([str(out), "--columns", "epochs,top-1 %,best top-1 %", "--plot", str(tmp_path / "a.png")])
    assert capsys.readouterr().out.splitlines()[-1] == "| 3 of 3 | 20.00   | 30.00        |"


def test_of_equally_good_epochs_the_first_is_the_best(run, scored, timed, out):
    scored(0, 0, 40, 40)
    assert "best top-1 40.00 % in epoch 2" in run("--epochs", 4)
    assert torch.load(out / "best_checkpoint.pth", weights_only=True)["epoch"] == 3


def test_the_best_of_another_directory_is_not_kept_here(run, scored, timed, out, tmp_path):
    scored(90, 20, 30, 10)
    run("--epochs", 1, "--output_dir", tmp_path / "first")
    printed = run("--epochs", 4, "--resume", tmp_path / "first" / "checkpoint.pth")
    assert "(best 90.00 %)" not in printed
    assert "best top-1 30.00 % in epoch 2" in printed
    assert torch.load(out / "best_checkpoint.pth", weights_only=True)["epoch"] == 3


def test_other_processes_wait_until_an_epoch_is_saved(run, scored, monkeypatch):
    """They would wait in their next step otherwise, which is timed."""
    scored(10, 20)
    events = []

    def spied(name):
        original = getattr(runner, name)

        def call(*args, **kwargs):
            events.append(name)
            return original(*args, **kwargs)

        return call

    for name in ("train_one_epoch", "save_epoch", "barrier"):
        monkeypatch.setattr(runner, name, spied(name))
    run("--epochs", 2)
    assert events == ["train_one_epoch", "save_epoch", "barrier"] * 2


def test_a_run_without_an_evaluation_yet_is_a_row_too(run, timed, out, monkeypatch, capsys, tmp_path):
    save = runner.save

    def stop(state, *args, **kwargs):
        save(state, *args, **kwargs)
        if state.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run("--epochs", 3, "--val-interval", 3)
    capsys.readouterr()
    summarize.main([str(out), "--columns", "epochs,top-1 %,s / epoch", "--plot", str(tmp_path / "a.png")])
    assert re.fullmatch(r"\| 1 of 3 \| +\| 1\.5 +\|", capsys.readouterr().out.splitlines()[-1])
    monkeypatch.setattr(runner, "save", save)
    run("--epochs", 3, "--val-interval", 3, "--auto-resume")
    assert ["test_acc1" in line for line in read_log(out / "log.txt")] == [False, False, True]


def test_patience_counts_evaluations(run, scored, out):
    scored(50, 40, 40)
    run(*"--epochs 6 --val-interval 2 --sched plateau --patience-epochs 0 --decay-rate 0.5".split())
    assert [line["lr"] for line in read_log(out / "log.txt")] == pytest.approx([7.8125e-6] * 4 + [3.90625e-6] * 2)


def test_the_time_left_counts_evaluations():
    records = [{"train_seconds": 10.0}, {"train_seconds": 12.0, "test_seconds": 3.0, "test_ema_seconds": 4.0}]
    assert seconds_left(records, [1, 1], [1] * 6, 2) == 6 * 11 + 2 * 7
    assert seconds_left(records[:1], [1], [1] * 6, 2) == 60


def test_the_time_left_counts_work():
    records = [{"train_seconds": 10.0}, {"train_seconds": 42.0}]
    assert seconds_left(records, [10, 40], [40, 90], 0) == 130 * (1 + 1.05) / 2


# The best epochs' checkpoints


def test_the_best_epochs_are_kept_under_their_numbers(run, scored, out):
    scored(10, 50, 30, 30, 20, 40)
    run("--epochs", 6, "--checkpoint-hist", 3)
    assert epochs_kept(out) == [1, 2, 5]  # of equals, the earlier
    for epoch, path in history.find(out).items():
        assert path == out / f"checkpoint-{epoch}.pth"
        assert torch.load(path, weights_only=True)["epoch"] == epoch + 1
    best, one = ((out / name).read_bytes() for name in ("best_checkpoint.pth", "checkpoint-1.pth"))
    assert len(best) == len(one)
    run("--eval", "--resume", out / "checkpoint-1.pth")


def test_none_are_kept_unless_asked_for(run, out):
    run("--epochs", 1)
    assert epochs_kept(out) == []


def test_only_evaluated_epochs_are_kept(run, out):
    run("--epochs", 5, "--val-interval", 2, "--checkpoint-hist", 9)
    assert epochs_kept(out) == [1, 3, 4]


def test_a_resumed_run_keeps_the_best_of_both_parts(run, scored, out):
    scored(60, 50, 70)
    run("--epochs", 3, "--checkpoint-hist", 2)
    scored(10, 65)
    run("--epochs", 5, "--checkpoint-hist", 2, "--auto-resume")
    assert epochs_kept(out) == [2, 4]


def test_a_run_that_asks_late_ranks_what_is_there(run, scored, out):
    scored(60, 50)
    run("--epochs", 2)
    scored(10, 20, 15)
    run("--epochs", 5, "--checkpoint-hist", 2, "--auto-resume")
    assert epochs_kept(out) == [3, 4]


def test_epochs_that_a_resumed_run_trains_again_are_dropped(run, scored, out):
    scored(10, 20, 30, 40)
    run("--epochs", 4, "--checkpoint-hist", 4)
    scored(5)
    run("--epochs", 2, "--checkpoint-hist", 4, "--resume", out / "checkpoint-0.pth")
    assert epochs_kept(out) == [0, 1]
    assert [line["test_acc1"] for line in read_log(out / "log.txt")] == [10, 5]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", [2, 3, 5, 6, 9, 10])
def test_killed_between_two_writes_a_run_ends_the_same(run, scored, out, monkeypatch, writes):
    """Within the first, second or fourth epoch: each is the best so far, and writes its own, best and latest."""
    save, left = checkpoint.save, [writes]

    def save_some(path, state):
        if not left[0]:
            raise Killed
        left[0] -= 1
        save(path, state)

    flags = ("--epochs", 4, "--checkpoint-hist", 1)
    monkeypatch.setattr(checkpoint, "save", save_some)
    scored(30, 40, 35, 50)
    with pytest.raises(Killed):
        run(*flags)
    monkeypatch.setattr(checkpoint, "save", save)
    scores = {0: 30, 1: 40, 2: 35, 3: 50}
    saved = checkpoint.newest(out)[1]
    scored(*(scores[epoch] for epoch in range(saved["epoch"], 4)))
    run(*flags, "--auto-resume")
    assert epochs_kept(out) == [3]
    assert [line["test_acc1"] for line in read_log(out / "log.txt")] == list(scores.values())
    assert not list(out.glob(".*.tmp"))


def test_a_kept_epoch_is_resumed_from_if_no_other_checkpoint_can_be_read(run, scored, out):
    scored(30, 40, 20)
    run("--epochs", 3, "--checkpoint-hist", 2)
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        (out / name).write_bytes(b"nothing")
    scored(36)
    printed = run("--epochs", 3, "--checkpoint-hist", 2, "--auto-resume")
    assert f"weights    {out}/checkpoint-1.pth, continues at epoch 2" in printed
    assert epochs_kept(out) == [1, 2]
