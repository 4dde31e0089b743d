"""Checkpoints: whole or not there, plain data only, strict."""

import argparse
import os

import pytest
import torch

from training import checkpoint


def test_round_trip(tmp_path):
    state = {"model": {"weight": torch.arange(3.0)}, "epoch": 4, "scheduler": {"base_values": [0.1]}, "scaler": None}
    checkpoint.save(tmp_path / "checkpoint.pth", state)
    loaded = checkpoint.load(str(tmp_path / "checkpoint.pth"))
    assert torch.equal(loaded.pop("model")["weight"], state.pop("model")["weight"])
    assert loaded == state
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"epoch": 1})

    def half(state, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left")

    if moment == "while writing":
        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="no space left|gone"):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(str(path)) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "code", "list"])
def test_files_that_are_no_checkpoint(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind != "missing":
        torch.save({"code": RunsCode(), "list": [1]}.get(kind, {"weight": torch.zeros(1000)}), path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"--resume .*x\.pth: ") as error:
        checkpoint.load(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made_by_a_checkpoint").exists()


def test_published_files_may_hold_their_command_line(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    assert checkpoint.load(str(tmp_path / "x.pth"))["args"].lr == 1


def test_weights_load_strictly():
    model = torch.nn.Linear(2, 3)
    checkpoint.load_weights(model, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "x.pth")
    assert model.bias.tolist() == [1, 1, 1]
    foreign = {"weight": torch.ones(4, 2), "stem": torch.ones(1)}
    with pytest.raises(ValueError, match="x.pth") as error:
        checkpoint.load_weights(model, foreign, "x.pth")
    assert "1 missing (first: bias)" in str(error.value)
    assert "1 unexpected (first: stem)" in str(error.value)
    assert "weight (4, 2) for (3, 2)" in str(error.value)
    assert "\n" not in str(error.value)
