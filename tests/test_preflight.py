"""--check: everything but training, and nothing kept."""

import shutil

import pytest
import torch

import main
from models_mamba import VisionMamba
from training.state import checkpoint

QUICK = "--no-aug --mixup 0 --cutmix 0 --num_workers 0 --batch-size 4 --check".split()


@pytest.fixture
def check(images, capsys):
    def call(*flags):
        main.main(["--data-set", "FOLDER", "--data-path", str(images), *QUICK, *map(str, flags)])
        return capsys.readouterr().out.splitlines()

    return call


def test_it_says_what_it_found_and_keeps_nothing(check, tmp_path):
    run = tmp_path / "runs" / "run"
    *_, data, training, test, saved, last = check("--output_dir", run, "--max-bad-steps", 2)
    assert data.startswith("data       4 images of (3, 8, 8), labels 0 to 1")
    assert training.startswith("training   one step in")
    assert "loss 0." in training
    assert "memory" in training
    assert test.startswith("test       one batch in")
    assert saved.startswith("checkpoint ")
    assert f"written to {run}, and read back the same" in saved
    assert last == "check      everything works; nothing was kept"
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_it_saves_elsewhere(check):
    assert "written to a temporary place" in check()[-2]


def test_it_changes_nothing_in_a_run(check, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fusion = "--fusion-strategy upper --fusion-layer 3 --fusion-token 2 --no-model-ema --batch-size 8".split()
    out = check("--output_dir", run, "--auto-resume", "--epochs", 1, *fusion)
    assert out[-1] == "check      everything works; nothing was kept"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_directories_that_were_there_stay(check, tmp_path):
    (tmp_path / "runs").mkdir()
    check("--output_dir", tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("flags", [(), ("--max-bad-steps", 3), ("--if_continue_inf",)])
def test_a_loss_that_is_not_finite_is_found(check, failing, monkeypatch, flags):
    monkeypatch.setattr(VisionMamba, "forward", lambda self, x: self.head.bias.repeat(len(x), 1) * float("nan"))
    line = failing(check, *flags, code=1)
    assert "the loss is nan" in line or "is not finite" in line


def test_a_checkpoint_that_is_read_otherwise_is_found(check, failing, monkeypatch, tmp_path):
    load = checkpoint.load

    def load_wrongly(*args):
        state = load(*args)
        state["model"]["head.bias"] = torch.full_like(state["model"]["head.bias"], 7.0)
        return state

    monkeypatch.setattr(checkpoint, "load", load_wrongly)
    assert "head.bias was written and not read back" in failing(check, "--output_dir", tmp_path, code=1)


def test_an_error_leaves_no_directory_either(check, failing, tmp_path):
    failing(check, "--output_dir", tmp_path / "run", "--nb-classes", 1)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_has_nothing_to_check(check, failing):
    assert "--check" in failing(check, "--eval", "--resume", "any.pth")
