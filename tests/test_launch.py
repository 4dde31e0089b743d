"""Real processes: the README's command, several processes, and what they print when something is wrong."""

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
from tests.fashion import write_fashion
from tests.forked import together
from training.records.runs import read_log

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text().replace("\\\n", "")  # commands of several lines are one
README_COMMAND = re.search(r"^(python -m torch\.distributed\.launch .*)$", README, re.M)
# Small and without anything random beside the seeded weights and order.
PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --no-model-ema --drop-path 0 --num_workers 0".split()


def start(command, **kwargs):
    environment = os.environ | {"PYTHONWARNINGS": "ignore::FutureWarning"}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **kwargs,
    )


def finish(command, **kwargs):
    process = start(command, cwd=ROOT, **kwargs)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-100 in its Python format with 4 training and 4 test images."""
    folder = tmp_path_factory.mktemp("data") / "cifar-100-python"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        batch = {
            "data": generator.integers(0, 256, (4, 3072), dtype=np.uint8),
            "fine_labels": [3, 14, 15, 92],
            "coarse_labels": [0, 1, 2, 3],
            "filenames": [f"{i}.png" for i in range(4)],
        }
        (folder / split).write_bytes(pickle.dumps(batch))
    return folder


def test_the_command_of_the_readme_trains(cifar, tmp_path):
    """With nothing but the data path changed; stopped once its first epoch is trained."""
    for name in os.listdir(ROOT):
        if not name.startswith(".") and name != "output":
            (tmp_path / name).symlink_to(ROOT / name)
    command = README_COMMAND.group(1).replace("./datasets/cifar-100-python", str(cifar)).split()[1:]
    process = start(command, cwd=tmp_path)
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("epoch   0/299:"):
                break
        out = "".join(printed)
    finally:
        process.terminate()  # the launcher ends its processes, which have sessions of their own
        process.communicate(timeout=60)
    lengths = [197] * 5 + list(range(189, 36, -8))
    assert " ".join(map(str, lengths)) in out
    assert "CIFAR, 4 training and 4 test images, 100 classes" in out
    assert re.search(r"epoch   0/299: loss \d+\.\d+, top-1", out), out
    (line,) = read_log(tmp_path / "output" / "vim_tiny" / "log.txt")
    assert 0 < line["train_loss"] < 20


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


TRAINED_ALIKE = ["--data-set", "FMNIST", "--lr", "1e-3", "--unscale-lr", "--warmup-epochs", "0", *PLAIN]


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Fashion-MNIST's files with images of 8x8 pixels: three steps of 48."""
    return write_fashion(tmp_path_factory.mktemp("fashion"), train=144, test=60, side=8)


def assert_alike(folder, *scores):
    one, two = (read_log(folder / name / "log.txt") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for score in scores:
            assert b[score] == pytest.approx(a[score], rel=1e-4), score


def test_two_processes_train_like_one(fashion, tmp_path):
    """The same global batches give the same losses, and shared-out evaluation the same accuracy."""
    common = [*TRAINED_ALIKE, "--data-path", str(fashion), "--epochs", "2", "--output_dir"]
    main.main([*common, str(tmp_path / "one"), "--batch-size", "48"])
    two = ["main.py", *common, str(tmp_path / "two"), "--batch-size", "24", "--dist-eval"]
    code, out, err = finish([*TORCHRUN, *two])
    assert code == 0, err
    assert "24 x 2 processes = 48" in out
    assert len(re.findall(r"^epoch 1/1: ", out, re.M)) == 1
    assert_alike(tmp_path, "train_loss", "train_grad_norm", "test_loss", "test_acc1", "test_acc5")


@pytest.mark.parametrize(
    "flags",
    [
        ("--grad-accum-steps", "3"),
        ("--train-only", "mixer", "--bce-loss", "--smoothing", "0"),
        ("--cosub", "--drop-path", "1e-9"),
    ],
    ids=lambda flags: flags[0],
)
def test_two_processes_train_like_one_in_other_ways_too(fashion, tmp_path, flags):
    common = [*TRAINED_ALIKE, "--data-path", str(fashion), "--epochs", "1", *flags, "--output_dir"]
    size = 16 if "--grad-accum-steps" in flags else 48
    main.main([*common, str(tmp_path / "one"), "--batch-size", str(size)])
    together(2, [*common, str(tmp_path / "two"), "--batch-size", str(size // 2)])
    assert_alike(tmp_path, "train_loss", "train_grad_norm", "test_loss")


def test_several_processes_without_a_launcher(cifar, unused_port):
    flags = ["--data-set", "CIFAR", "--data-path", str(cifar), "--epochs", "1", "--input-size", "8", *PLAIN]
    url = f"tcp://127.0.0.1:{unused_port}"
    code, out, err = finish(["main.py", "--world_size", "2", "--dist_url", url, *flags])
    assert code == 0, err
    assert "64 x 2 processes = 128" in out


def test_without_an_address_they_meet_by_themselves_and_are_checked_together(tmp_path):
    code, out, err = finish(["main.py", "--world_size", "2", *PLAIN, "--check", "--output_dir", str(tmp_path / "out")])
    assert code == 0, err
    assert "64 x 2 processes = 128" in out
    assert out.count("check      everything works") == 1
    assert out.count("training   one step in") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_launchers_of_old_pass_the_local_rank(cifar):
    flags = ["--data-set", "CIFAR", "--data-path", str(cifar), "--epochs", "1", "--input-size", "8", *PLAIN]
    code, out, err = finish(["-m", "torch.distributed.launch", "--nproc_per_node=1", "main.py", *flags])
    assert code == 0, err
    assert "epoch 0/0: " in out
    assert "Warning" not in err  # of ours, without the launcher's own


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--fusion-strategy", "uper"), "main.py: error: unknown --fusion-strategy uper"),
        (("--resume", "missing.pth"), "main.py: error: --resume missing.pth: no such file"),
    ],
)
def test_under_a_launcher_an_error_is_said_once(flags, line):
    code, out, err = finish([*TORCHRUN, "main.py", *flags])
    assert code != 0
    assert line in err
    assert (out + err).count("main.py: error: ") == 1


def test_an_error_is_one_line_and_code_2():
    started = time.monotonic()
    code, out, err = finish(["main.py", "--data-set", "CIFAR", "--data-path", "/nowhere"])
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"main\.py: error: --data-set CIFAR: no .*\n", err)
    assert time.monotonic() - started < 60
