"""Checkpoints: whole or not there, plain data only, strict."""

import argparse
import multiprocessing
import os
import random
import time

import pytest
import torch
from safetensors.torch import save_file

from training.state import checkpoint

WEIGHTS = {"weight": torch.arange(3.0)}


def test_round_trip(tmp_path):
    state = {"model": dict(WEIGHTS), "epoch": 4, "scheduler": {"base_values": [0.1]}, "scaler": None}
    checkpoint.save(tmp_path / "checkpoint.pth", state)
    loaded = checkpoint.load(str(tmp_path / "checkpoint.pth"))
    assert torch.equal(loaded.pop("model")["weight"], state.pop("model")["weight"])
    assert loaded == state
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"model": WEIGHTS, "epoch": 1})

    def half(state, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left")

    if moment == "while writing":
        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="no space left|gone"):
        checkpoint.save(path, {"model": WEIGHTS, "epoch": 2})
    assert checkpoint.load(str(path))["epoch"] == 1
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def state_of(step):
    # Each too small for several threads, which a forked process doesn't have.
    return {"model": {f"{i}": torch.full((10_000,), float(step)) for i in range(100)}, "epoch": step}


def save_for_ever(path):
    step = 0
    while True:
        checkpoint.save(path, state_of(step))
        step += 1


def test_killed_while_saving(tmp_path):
    """Twenty times; what is there is always whole, the last one or the one before, and leftovers go."""
    path, generator, leftovers = tmp_path / "checkpoint.pth", random.Random(0), 0
    checkpoint.save(path, state_of(0))
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        time.sleep(0.05 + 0.05 * generator.random())
        process.kill()
        process.join()
        state = checkpoint.load(str(path))
        torch.testing.assert_close(state, state_of(state["epoch"]), rtol=0, atol=0)
        leftovers += len(list(tmp_path.glob(".*.tmp")))
        checkpoint.remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["checkpoint.pth"]
    assert leftovers > 0  # some were killed in the middle of a save


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


NOT_WEIGHTS = {
    "nothing": {},
    "a list": [1],
    "bare numbers": {"weight": 1.0},
    "numbered weights": {0: torch.ones(1)},
    "an empty model": {"model": {}},
    "a model of lists": {"model": {"weight": [1.0]}},
    "no model": {"model": None},
    "a broken average": {"model": WEIGHTS, "model_ema": {"weight": 1}},
    "settings that are a list": {"model": WEIGHTS, "settings": [1]},
}


@pytest.mark.parametrize("content", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    reasons = "holds a list|its (model|model_ema) is not a table|its settings are no table"
    with pytest.raises(ValueError, match=rf"--resume .*x\.pth: ({reasons})"):
        checkpoint.load(str(tmp_path / "x.pth"))


def test_bare_weights_are_a_checkpoint(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.pth")
    assert torch.equal(checkpoint.load(str(tmp_path / "x.pth"))["model"]["weight"], WEIGHTS["weight"])


def test_a_checkpoint_of_timms_training_script(tmp_path):
    torch.save({"epoch": 3, "state_dict": WEIGHTS, "state_dict_ema": WEIGHTS, "optimizer": {}}, tmp_path / "x.pth")
    saved = checkpoint.load(str(tmp_path / "x.pth"))
    for entry in ("model", "model_ema"):
        assert torch.equal(saved[entry]["weight"], WEIGHTS["weight"])
    assert saved.keys() == {"model", "model_ema"}  # the rest is of another program


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "code"])
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
        torch.save({"code": RunsCode()}.get(kind, {"weight": torch.zeros(1000)}), path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"--resume .*x\.pth: ") as error:
        checkpoint.load(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made_by_a_checkpoint").exists()


def test_published_files_may_hold_their_command_line(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    assert checkpoint.load(str(tmp_path / "x.pth"))["args"].lr == 1


def test_weights_fit_exactly():
    model = torch.nn.Linear(2, 3)
    checkpoint.check_fit(model, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "x.pth")
    foreign = {"weight": torch.ones(4, 2), "stem": torch.ones(1)}
    with pytest.raises(ValueError, match="x.pth") as error:
        checkpoint.check_fit(model, foreign, "x.pth")
    assert "1 missing (first: bias)" in str(error.value)
    assert "1 unexpected (first: stem)" in str(error.value)
    assert "weight (4, 2) for (3, 2)" in str(error.value)
    assert "\n" not in str(error.value)


def test_safetensors_are_weights(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    loaded = checkpoint.load(str(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded["model"]["weight"], WEIGHTS["weight"])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.safetensors: not a checkpoint of tensors and plain data"):
        checkpoint.load(str(tmp_path / "broken.safetensors"))


def test_the_checkpoint_to_go_on_from_is_the_one_that_is_furthest(tmp_path):
    """However old the files look; of two that are as far, the last state."""
    last, best = tmp_path / "checkpoint.pth", tmp_path / "best_checkpoint.pth"
    for there, other, expected in (((2, 5), (2, 0), last), ((2, 0), (2, 0), last), ((1, 9), (2, 0), best)):
        for path, (epoch, steps) in ((last, there), (best, other)):
            checkpoint.save(path, {"model": WEIGHTS, "epoch": epoch, "sums": {"steps": steps}})
        for touched in (last, best):
            os.utime(touched, (2e9, 2e9))
            found, saved = checkpoint.newest(tmp_path)
            assert (found, saved["epoch"]) == (str(expected), max(there, other)[0])
            os.utime(touched, (1e9, 1e9))


def test_data_sets_are_named_as_their_flag_gives_them(tmp_path):
    """Older versions kept them as they were typed."""
    for typed, name in (("cifar100", "CIFAR"), ("folder", "FOLDER"), ("wds/x", "wds/x")):
        torch.save({"model": WEIGHTS, "settings": {"data_set": typed}}, tmp_path / "a.pth")
        assert checkpoint.load(str(tmp_path / "a.pth"))["settings"] == {"data_set": name}


def test_no_advice_to_run_code_in_a_file(tmp_path):
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint of tensors and plain data$"):
        checkpoint.load(str(tmp_path / "a.pth"))
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run: is a directory; name a file in it, such as .*run/checkpoint.pth"):
        checkpoint.load(str(tmp_path / "run"))
