"""--eval: what it takes from a checkpoint, how it computes, and what it leaves."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from timm.models import create_model

import main
import visualize

FUSE = "--fusion-strategy all --fusion-token 1 --fusion-reduce prune --fusion-order concat".split()


@pytest.fixture
def pruning(trained, tmp_path):
    """The checkpoint of a run that prunes."""
    saved = torch.load(trained / "checkpoint.pth", weights_only=True)
    chosen = dict(zip(("fusion_strategy", "fusion_token", "fusion_reduce", "fusion_order"), FUSE[1::2], strict=True))
    saved["settings"] |= chosen | {"fusion_layer": None, "fusion_token": 1}
    torch.save(saved, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def evaluate(*flags):
    main.main(["--eval", "--num_workers", "0", *map(str, flags)])


@pytest.mark.parametrize("flags", ["--fusion-strategy no", "--fusion-plan 0,0,0,0,0,0", "--fusion-average size"])
def test_fusion_that_conflicts_is_not_taken_over(pruning, tmp_path, capsys, flags):
    evaluate("--resume", pruning, *flags.split())
    out = capsys.readouterr().out
    assert ("17 17 17 17 17 17 17" if "size" not in flags else "17 16 15 14 13 12 11") in out
    if "strategy" in flags:
        visualize.main(["--resume", str(pruning), "--images", "2", "--output_dir", str(tmp_path), *flags.split()])
        assert (tmp_path / "similarity.png").exists()


def test_scores_go_to_the_output_directory(trained, tmp_path, capsys):
    evaluate("--resume", trained / "checkpoint.pth", "--output_dir", tmp_path / "new" / "scores")
    printed = re.search(r"model: top-1 (\S+) %, top-5 (\S+) %, loss (\S+),", capsys.readouterr().out).groups()
    found = json.loads((tmp_path / "new" / "scores" / "scores.json").read_text())
    scores = found["scores"]["model"]
    assert (f"{scores['acc1']:.2f}", f"{scores['acc5']:.2f}", f"{scores['loss']:.4f}") == printed
    assert found["settings"]["resume"] == str(trained / "checkpoint.pth")
    assert found["settings"]["token_counts"] == [17, 17, 17, 17, 15, 13, 11]


def test_broken_images_are_told(trained, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "images")
    flags = ("--resume", trained / "checkpoint.pth", "--data-path", tmp_path / "images", "--skip-bad-images")
    evaluate(*flags)
    assert "images" not in capsys.readouterr().out.splitlines()[-1]
    count = len(list((images / "val").rglob("*.png")))
    next((tmp_path / "images" / "val").rglob("*.png")).write_text("no image")
    evaluate(*flags)
    assert f", {count - 1} of {count} images, " in capsys.readouterr().out.splitlines()[-1]


def test_a_runs_own_directory_gets_nothing_but_scores(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    evaluate("--resume", run / "checkpoint.pth")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    evaluate("--resume", run / "checkpoint.pth", "--output_dir", run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "scores.json"} == before
    assert (run / "scores.json").exists()


def test_a_place_for_scores_that_can_not_be_written_is_refused_first(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "evaluate", lambda *args, **kwargs: pytest.fail("it was evaluated"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        evaluate("--resume", trained / "checkpoint.pth", "--output_dir", tmp_path / "file" / "out")
    assert "can't be written" in capsys.readouterr().err


def test_a_compiled_model_is_evaluated(trained, capsys, without_inductor):
    outs = []
    for flags in ((), ("--compile",)):
        evaluate("--resume", trained / "checkpoint.pth", *flags)
        outs.append(re.search(r"model: (top-1 .*, loss \S+),", capsys.readouterr().out).group(1))
    assert outs[0] == outs[1]
    assert without_inductor == [{"fullgraph": True}]


@pytest.fixture
def imagenet(tmp_path):
    """Five images of five classes under ImageNet's names, their reassessed labels, and weights that rank the classes.

    The weights find class 0 most likely in every image, then 1, and so on; their average finds class 4 most likely.
    """
    for number in range(5):
        folder = tmp_path / "imagenet" / "val" / f"n{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG")
    (tmp_path / "real.json").write_text("[[0, 1], [0], [2], [], [4]]")
    weights = create_model("vim_pico_patch2_8", num_classes=5).state_dict() | {"head.weight": torch.zeros(5, 48)}
    falling = torch.arange(5.0).flip(0)
    entries = {"model": weights | {"head.bias": falling}, "model_ema": weights | {"head.bias": -falling}}
    torch.save(entries, tmp_path / "x.pth")
    return ["--data-set", "IMNET", "--data-path", tmp_path / "imagenet", "--resume", tmp_path / "x.pth"]


def test_reassessed_labels_of_imagenet(imagenet, tmp_path, capsys):
    evaluate(*imagenet, "--real-labels", tmp_path / "real.json", "--batch-size", 2, "--output_dir", tmp_path)
    out = capsys.readouterr().out
    assert "model: top-1 20.00 %, top-5 100.00 %, ReaL top-1 50.00 %, top-5 100.00 %, loss" in out
    assert "EMA: top-1 20.00 %, top-5 100.00 %, ReaL top-1 25.00 %, top-5 100.00 %, loss" in out
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert (scores["model"]["real_acc1"], scores["EMA"]["real_acc5"]) == (50, 100)
    evaluate(*imagenet)
    assert "ReaL" not in capsys.readouterr().out


def test_reassessed_labels_that_do_not_fit_are_refused_first(imagenet, tmp_path, failing, monkeypatch):
    monkeypatch.setattr(main, "evaluate", lambda *args, **kwargs: pytest.fail("it was evaluated"))
    (tmp_path / "real.json").write_text("[[0]]")
    line = failing(evaluate, *imagenet, "--real-labels", tmp_path / "real.json")
    assert "real.json: has labels for 1 image, and the data set has 5 test images" in line
