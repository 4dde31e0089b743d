"""The script that retrains a fused model with itself as the teacher: what it starts, and that this trains."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

import main
from tests.scripts.test_tables import make_house, start
from training.build.objective import build_objective
from training.records.runs import read_log
from training.runtime.distributed import World

# Stands for the environment's interpreter: reads JSON, and notes how a training was started.
RECORDER = f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\necho "$@" >> calls\n'
FUSION = ("--fusion-strategy", "all", "--fusion-cost", "0.8")


@pytest.fixture
def house(tmp_path):
    return make_house(tmp_path / "house", RECORDER)


def flags_of(house, *arguments, **environment):
    """The flags of main.py in the training that the script starts."""
    result = start(house, "retrain_fused", *arguments, **{"GPUS": "1"} | environment)
    assert result.returncode == 0, result.stderr
    (call,) = (house / "calls").read_text().splitlines()
    assert "--nproc-per-node=1" in call
    return call.split(" main.py ")[1].split()


def test_a_tiny_run_trains_fused_with_its_own_weights_as_the_teacher(house, trained, tmp_path, capsys):
    output = tmp_path / "retrained"
    flags = flags_of(house, trained / "checkpoint.pth", "--", *FUSION, EPOCHS="2", OUTPUT=str(output))
    main.main(flags)
    assert "fusion     all, " in capsys.readouterr().out
    before, after = (json.loads((folder / "args.json").read_text()) for folder in (trained, output))
    for name in ("model", "data_set", "data_path", "batch_size", "mixup", "model_ema"):
        assert after[name] == before[name]
    assert after["weights"] == after["teacher_path"] == str(trained / "checkpoint.pth")
    assert after["teacher_model"] == before["model"]
    assert (after["distillation_type"], after["distillation_alpha"]) == ("soft", 0.9)
    assert after["lr"] == pytest.approx(before["lr"] / 10)
    assert after["token_counts"][-1] < before["token_counts"][0]
    assert len(read_log(output / "log.txt")) == 2
    main.main(flags)
    assert "nothing left to train" in capsys.readouterr().out


def test_the_environment_and_flags_win(house, trained):
    flags = flags_of(
        house, trained / "checkpoint.pth", "--", *FUSION, "--seed", "3", EPOCHS="1", LR="2e-5", ALPHA="0.5"
    )
    settings = main.parse_args(flags)
    assert (settings.epochs, settings.lr, settings.distillation_alpha, settings.seed) == (1, 2e-5, 0.5, 3)
    assert settings.output_dir == f"{trained}-retrained"


def test_what_it_refuses(house, trained, tmp_path):
    shutil.copy(trained / "checkpoint.pth", tmp_path)
    for arguments, said in (
        ((), "usage: bash"),
        ((trained / "checkpoint.pth", *FUSION), "usage: bash"),
        ((trained / "checkpoint.pth", "--"), "usage: bash"),
        ((tmp_path / "none" / "a.pth", "--", *FUSION), "there is no file"),
        ((tmp_path / "checkpoint.pth", "--", *FUSION), f"there is no file {tmp_path}/args.json"),
    ):
        result = start(house, "retrain_fused", *arguments)
        assert result.returncode == 2, arguments
        (line,) = result.stderr.splitlines()
        assert said in line


@pytest.mark.parametrize(
    "flags", [("--in-chans", "1"), ("--model-kwargs", "depth=4"), ("--cosub", "--drop-path", "0.1"), ("--pretrained",)]
)
def test_every_kind_of_run_can_be_its_own_teacher(house, images, tmp_path, flags):
    """Grey images, arguments of the model, another kind of teaching, and a run that started from weights of its own."""
    run, output = tmp_path / "run", tmp_path / "retrained"
    plain = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8 --epochs 1".split()
    more = () if "--pretrained" in flags else flags
    main.main([*plain, *more, "--data-set", "FOLDER", "--data-path", str(images), "--output_dir", str(run)])
    if "--pretrained" in flags:  # whose weights no test can download
        settings = json.loads((run / "args.json").read_text())
        (run / "args.json").write_text(json.dumps(settings | {"pretrained": True}))
    main.main(flags_of(house, run / "checkpoint.pth", "--", *FUSION, EPOCHS="1", OUTPUT=str(output)))
    assert len(read_log(output / "log.txt")) == 1


@pytest.fixture
def grey_teacher(images, tmp_path):
    """Flags of a run on the small folder, taught by one that saw it in grey."""
    plain = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8 --epochs 1".split()
    plain += ["--data-set", "FOLDER", "--data-path", str(images)]
    main.main([*plain, "--in-chans", "1", "--output_dir", str(tmp_path)])
    model = json.loads((tmp_path / "args.json").read_text())["model"]
    taught = f"--distillation-type soft --teacher-model {model} --teacher-path".split()
    return [*plain, *taught, str(tmp_path / "checkpoint.pth")]


def test_a_teacher_of_grey_images_can_not_teach_colours(grey_teacher, capsys):
    with pytest.raises(SystemExit):
        main.main(grey_teacher)
    assert "takes images of 1 channel, not of 3" in capsys.readouterr().err


def test_a_teacher_of_grey_images_sees_them_as_they_are(grey_teacher):
    settings = replace(main.parse_args([*grey_teacher, "--in-chans", "1"]), input_size=(8, 8), nb_classes=2)
    scale, shift = build_objective(settings, World(torch.device("cpu"), 0, 1)).renormalisation
    torch.testing.assert_close(scale, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(shift, torch.zeros(1, 1, 1, 1))
