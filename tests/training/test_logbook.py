"""The logbook: one line an epoch, TensorBoard scalars, and no run mixed with another."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.logbook import Logbook, read_log


def record(epoch):
    return {
        "epoch": epoch,
        "scan_backend": "reference",
        "train_loss": 1.0 / (epoch + 1),
        "test_ema_acc1": 50.0,
        "lr": 0.1,
    }


def test_lines_settings_and_scalars(tmp_path):
    book = Logbook(tmp_path / "deep" / "run", {"lr": 0.1, "tokens": (3, 2)}, 0, resumed=False)
    book.write(record(0))
    book.write(record(1))
    assert read_log(tmp_path / "deep" / "run" / "log.txt") == [record(0), record(1)]
    assert json.loads((tmp_path / "deep" / "run" / "args.json").read_text()) == {"lr": 0.1, "tokens": [3, 2]}
    events = EventAccumulator(str(tmp_path / "deep" / "run")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "test/ema_acc1", "run/lr"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 1.0), (1, 0.5)]


def test_another_runs_directory_is_refused(tmp_path):
    Logbook(tmp_path, {}, 0, resumed=False).write(record(0))
    with pytest.raises(ValueError, match=r"holds a run already .* --resume .*checkpoint\.pth"):
        Logbook(tmp_path, {}, 0, resumed=False)
    assert read_log(tmp_path / "log.txt") == [record(0)]


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path):
    book = Logbook(tmp_path, {}, 0, resumed=False)
    for epoch in range(3):
        book.write(record(epoch))
    Logbook(tmp_path, {}, 2, resumed=True).write(record(2))
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0, 1, 2]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output_dir .*file: can't be written"):
        Logbook(tmp_path / "file", {}, 0, resumed=False)
