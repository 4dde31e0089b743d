"""The logbook: one line an epoch, TensorBoard scalars, and no run mixed with another."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.records.logbook import Logbook, open_directory
from training.records.runs import read_log


def record(epoch):
    return {
        "epoch": epoch,
        "scan_backend": "reference",
        "train_loss": 1.0 / (epoch + 1),
        "test_ema_acc1": 50.0,
        "lr": 0.1,
    }


def start(folder, settings=None, epoch=0, resumed_from=""):
    """What a run does with its directory."""
    with open_directory(folder, str(resumed_from)):
        return Logbook(folder, settings or {}, epoch)


def test_lines_settings_and_scalars(tmp_path):
    book = start(tmp_path / "deep" / "run", {"lr": 0.1, "tokens": (3, 2)})
    book.write(record(0))
    book.write(record(1))
    assert read_log(tmp_path / "deep" / "run" / "log.txt") == [record(0), record(1)]
    assert json.loads((tmp_path / "deep" / "run" / "args.json").read_text()) == {"lr": 0.1, "tokens": [3, 2]}
    events = EventAccumulator(str(tmp_path / "deep" / "run")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/train_loss", "accuracy/test_ema_acc1", "optimizer/lr"}
    assert [(e.step, e.value) for e in events.Scalars("loss/train_loss")] == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize("resumed_from", ["", "elsewhere/checkpoint.pth"])
def test_another_runs_directory_is_refused(tmp_path, resumed_from):
    start(tmp_path).write(record(0))
    with pytest.raises(ValueError, match=r"holds a run already; .* --auto-resume"):
        start(tmp_path, resumed_from=resumed_from)
    assert read_log(tmp_path / "log.txt") == [record(0)]


def test_a_checkpoint_alone_is_a_run(tmp_path):
    (tmp_path / "checkpoint.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a run already"):
        start(tmp_path)


def test_what_a_run_left_before_its_first_epoch_is_in_nobodys_way(tmp_path):
    start(tmp_path)
    start(tmp_path, resumed_from="elsewhere/checkpoint.pth")
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_l')
    start(tmp_path).write(record(0))
    assert read_log(tmp_path / "log.txt") == [record(0)]


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path, monkeypatch):
    book = start(tmp_path)
    for epoch in range(3):
        book.write(record(epoch))
    monkeypatch.chdir(tmp_path.parent)
    start(tmp_path, epoch=2, resumed_from=f"{tmp_path.name}/best_checkpoint.pth").write(record(2))
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0, 1, 2]


@pytest.mark.parametrize("half", ['{"epoch": 1, "train_', "{", "\0\0\0", b"\xff".decode("latin1")])
def test_a_last_line_that_a_crash_left_half_written_is_dropped(tmp_path, half):
    start(tmp_path).write(record(0))
    with open(tmp_path / "log.txt", "a") as file:
        file.write(half)
    start(tmp_path, epoch=1, resumed_from=tmp_path / "checkpoint.pth").write(record(1))
    assert read_log(tmp_path / "log.txt") == [record(0), record(1)]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("line", ["hello", "[1]", "{}", '{"epoch": null}', "3"])
def test_any_other_line_that_is_no_epoch_is_one_line(tmp_path, line, resumed):
    (tmp_path / "log.txt").write_text(f'{line}\n{{"epoch": 0}}\n')
    with pytest.raises(ValueError, match=r"log\.txt: line 1 is not an epoch"):
        start(tmp_path, resumed_from=tmp_path / "checkpoint.pth" if resumed else "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_not_written(tmp_path, value):
    book = start(tmp_path)
    with pytest.raises(FloatingPointError, match=f"epoch 0: test_loss is {value}"):
        book.write(record(0) | {"test_loss": value})
    assert read_log(tmp_path / "log.txt") == []


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output_dir .*file: can't be written"):
        start(tmp_path / "file")
