"""Names of classes: data that lack some of them, or have others, never change what a label means."""

import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import main
from scripts import evaluate
from training.data.classes import check_all_there, class_names, follow_classes

FLAGS = (
    "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --no-model-ema --num_workers 0 --warmup-epochs 0 --lr 3e-3"
    " --unscale-lr --batch-size 8"
).split()
SHADES = {"black": 0, "grey": 128, "white": 255}


class Named(Dataset):
    def __init__(self, classes):
        self.classes, self.target_transform = classes, int


def test_names_are_those_of_ours_torchvision_and_timm():
    assert class_names(Named(["ant", "bee"])) == ["ant", "bee"]
    assert class_names(Namespace(reader=Namespace(class_to_idx={"bee": 1, "ant": 0}))) == ["ant", "bee"]
    for nameless in (Named(range(10)), Named([("ant", "emmet")]), Named([]), Namespace(reader=Namespace())):
        assert class_names(nameless) is None


def test_labels_follow_names():
    dataset = Named(["bee", "wasp"])
    follow_classes(dataset, ["ant", "bee", "wasp"])
    assert [dataset.target_transform(label) for label in (0, 1)] == [1, 2]
    assert dataset.classes == ["bee", "wasp"]


def test_labels_without_names_stay():
    dataset = Named(range(2))
    follow_classes(dataset, ["ant", "bee", "wasp"])
    assert [dataset.target_transform(label) for label in (0, 1)] == [0, 1]


def test_classes_that_nobody_learned_are_named():
    with pytest.raises(ValueError, match="doesn't know: moth, wasp .it learns ant, bee."):
        follow_classes(Named(["bee", "moth", "wasp"]), ["ant", "bee"])


def test_classes_that_are_gone_are_named():
    check_all_there(["ant", "bee"], Named(["bee", "ant"]), "x")
    with pytest.raises(ValueError, match="--resume x: learned ant, wasp too"):
        check_all_there(["ant", "bee", "wasp"], Named(["bee"]), "--resume x")


# What runs do


def shades(root, split, names):
    for name in names:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), SHADES[name], np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shades")
    shades(root, "train", SHADES)
    shades(root, "val", SHADES)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A model that knows the shades without an error."""
    output = tmp_path_factory.mktemp("trained")
    main.main(["--data-set", "FOLDER", "--data-path", str(data), *FLAGS, "--epochs", "12", "--output_dir", str(output)])
    return output / "checkpoint.pth"


@pytest.fixture
def run(capsys):
    def call(*flags):
        main.main([*FLAGS, *map(str, flags)])
        return capsys.readouterr().out

    return call


def top1(out):
    """The last one that was printed."""
    return float(re.findall(r"top-1 ([\d.]+) %", out)[-1])


def test_checkpoints_keep_the_names(trained):
    assert torch.load(trained, weights_only=True)["classes"] == ["black", "grey", "white"]


def test_evaluation_without_some_classes_counts_the_same(trained, run, tmp_path):
    shades(tmp_path, "val", ["grey", "white"])
    for name in ("FOLDER", "torch/image_folder"):
        assert top1(run("--eval", "--resume", trained, "--data-set", name, "--data-path", tmp_path)) == 100


def test_validation_images_without_some_classes_count_the_same(data, run, tmp_path):
    shutil.copytree(data / "train", tmp_path / "train")
    shades(tmp_path, "val", ["grey", "white"])
    assert top1(run("--data-set", "torch/image_folder", "--data-path", tmp_path, "--epochs", 12)) == 100


def test_evaluation_of_a_class_that_the_model_does_not_know(trained, error, tmp_path):
    shades(tmp_path, "val", ["black", "white"])
    (tmp_path / "val" / "white").rename(tmp_path / "val" / "yellow")
    line = error("--eval", "--resume", trained, "--data-path", tmp_path)
    assert str(tmp_path) in line
    assert (
        "the validation images have classes that the model doesn't know: yellow (it learns black, grey, white)" in line
    )


def test_going_on_with_other_classes_is_refused(trained, run, error, tmp_path):
    for split in ("train", "val"):
        shades(tmp_path, split, ["black", "white"])
    flags = ("--data-set", "FOLDER", "--data-path", tmp_path, "--resume", trained, "--epochs", 13)
    assert "learned grey too" in error(*flags)
    assert top1(run(*flags, "--resume-anyway")) == 100
    for split in ("train", "val"):
        (tmp_path / split / "white").rename(tmp_path / split / "yellow")
    assert "doesn't know: yellow" in error(*flags, "--resume-anyway")


def test_going_on_with_more_or_fewer_images_is_refused_and_elsewhere_is_not(data, trained, run, error, tmp_path):
    shutil.copytree(data, tmp_path / "moved")
    flags = ("--data-set", "FOLDER", "--data-path", tmp_path / "moved", "--resume", trained, "--epochs", 13)
    assert "epoch 12/12" in run(*flags)
    (tmp_path / "moved" / "train" / "grey" / "0.png").unlink()
    assert "the number of training images was 12 and is 11" in error(*flags)
    assert "epoch 12/12" in run(*flags, "--resume-anyway")


def test_finetuning_takes_the_head_of_the_same_classes_alone(trained, run, tmp_path):
    still = (
        "--epochs",
        1,
        "--lr",
        1e-12,
        "--min-lr",
        0,
        "--warmup-lr",
        0,
        "--data-set",
        "FOLDER",
        "--data-path",
        tmp_path,
        "--finetune",
        trained,
    )
    for split in ("train", "val"):
        shades(tmp_path, split, ["grey", "white"])
    out = run(*still)
    assert "new head" not in out
    assert top1(out) == 100
    for split in ("train", "val"):
        shades(tmp_path, split, ["black"])
        (tmp_path / split / "black").rename(tmp_path / split / "blue")
    assert "with a new head for 3 classes" in run(*still)


def test_a_teacher_of_other_classes_is_refused(data, trained, error, run, tmp_path):
    for split in ("train", "val"):
        shades(tmp_path, split, SHADES)
        (tmp_path / split / "black").rename(tmp_path / split / "yellow")  # white is the second of three now
    teacher = ("--teacher-model", "vim_pico_patch2_8", "--teacher-path", trained, "--distillation-type", "soft")
    flags = ("--data-set", "FOLDER", "--epochs", 1, *teacher)
    run(*flags, "--data-path", data)
    line = error(*flags, "--data-path", tmp_path)
    assert f"{trained}: knows the classes black, grey, white, and the images are of grey, white, yellow" in line


def test_an_evaluation_counts_the_same_without_some_classes(trained, tmp_path, capsys):
    shades(tmp_path, "val", ["grey", "white"])
    flags = [str(trained), "--data-path", str(tmp_path), "--plans", "no", "--num_workers", "0"]
    evaluate.main([*flags, "--rounds", "0", "--device", "cpu"])
    (without_fusion,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| no ")]
    assert without_fusion.split("|")[6].strip() == "100.00"


def test_checkpoints_of_older_runs_name_no_classes(data, trained, run, tmp_path):
    saved = torch.load(trained, weights_only=True)
    del saved["classes"]
    torch.save(saved, tmp_path / "old.pth")
    assert top1(run("--eval", "--resume", tmp_path / "old.pth")) == 100
    assert "epoch 12/12" in run(
        "--resume", tmp_path / "old.pth", "--epochs", 13, "--data-set", "FOLDER", "--data-path", data
    )
