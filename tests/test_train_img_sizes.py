"""--train-img-sizes in a training: what arrives at the model, what is said and logged, and what it works with."""

import re

import pytest
import torch

import main
import ssm.backends
from models_mamba import VisionMamba
from tests.forked import Forked, together
from training.records.runs import read_log

PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --drop-path 0 --num_workers 0 --warmup-epochs 0".split()
FUSE = "--fusion-strategy upper --fusion-layer 4 --fusion-keep 0.5".split()
SIZES = "--epochs 3 --train-img-sizes 4 6 8".split()


@pytest.fixture
def run(images, capsys):
    """Run main.py in this process on the small folder; returns what it printed."""

    def call(*flags):
        data = ["--data-set", "FOLDER", "--data-path", str(images), "--batch-size", "8"]
        main.main([*data, *PLAIN, *map(str, flags)])
        return capsys.readouterr().out

    return call


@pytest.fixture
def seen(monkeypatch):
    """What arrives at any model: whether it learns from them, the height and width of the images, and its plan."""
    found, forward = [], VisionMamba.forward

    def look(self, x):
        plan = tuple(getattr(block.fusion, "r", 0) for block in self.layers)
        found.append((self.training, tuple(x.shape[-2:]), plan))
        return forward(self, x)

    monkeypatch.setattr(VisionMamba, "forward", look)
    return found


SMALL, MIDDLE, LARGE = (0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 2, 3), (0, 0, 0, 0, 4, 4)


@pytest.mark.parametrize("flags", [(), ("--grad-accum-steps", 2, "--batch-size", 4), ("--scan-recompute",)], ids=str)
def test_the_model_gets_the_sizes_and_plans_that_flags_say(run, seen, flags):
    run(*SIZES, *FUSE, *flags)
    parts = 4 if "--grad-accum-steps" in flags else 2  # of the 16 images of an epoch
    epochs = [((4, 4), SMALL), ((6, 6), MIDDLE), ((8, 8), LARGE)]
    assert [each[1:] for each in seen if each[0]] == [epoch for epoch in epochs for _ in range(parts)]
    tests = [each[1:] for each in seen if not each[0]]
    assert tests == [((8, 8), LARGE)] * 6  # of the model and its average, after each epoch


def test_the_last_size_may_be_smaller_than_that_of_the_tests(run, seen):
    run("--epochs", 2, "--train-img-sizes", 4, 6, "--no-model-ema")
    assert [size for _, size, _ in seen] == [(4, 4), (4, 4), (8, 8), (6, 6), (6, 6), (8, 8)]


def test_the_input_size_alone_trains_as_without(run, tmp_path):
    run("--epochs", 2, *FUSE, "--output_dir", tmp_path / "without")
    run("--epochs", 2, *FUSE, "--train-img-sizes", 8, "--output_dir", tmp_path / "with")
    saved = [torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("without", "with")]
    for name in ("model", "model_ema", "optimizer"):
        torch.testing.assert_close(saved[0][name], saved[1][name], rtol=0, atol=0)


def test_screen_log_and_checkpoint(run, tmp_path):
    printed = run(*SIZES, *FUSE, "--log-images", 1, "--output_dir", tmp_path)
    assert "4 x 4 pixels in epoch 0; tokens before layer 0 and after each layer:\n           5 5 5 5 5 4 3" in printed
    for epoch, words in enumerate(("4 pixels, 5 to 3 tokens", "6 pixels, 10 to 5 tokens", "8 pixels, 17 to 9 tokens")):
        assert re.search(rf"^epoch {epoch}/2: {words}, loss \d", printed, re.M)
    log = read_log(tmp_path / "log.txt")
    found = [tuple(line[name] for name in ("image_size", "tokens", "tokens_at_end")) for line in log]
    assert found == [(4, 5, 3), (6, 10, 5), (8, 17, 9)]
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert tuple(saved["grid_size"]) == (4, 4)
    printed = run("--eval", "--resume", tmp_path / "checkpoint.pth")
    assert f"model: top-1 {log[-1]['test_acc1']:.2f} %" in printed


def test_epochs_that_share_a_size_are_named_together(run):
    assert "4 x 4 pixels in epochs 0 to 1; tokens" in run("--check", "--epochs", 4, "--train-img-sizes", 4, 8)


def test_check_tries_every_size_and_the_largest_last(run):
    printed = run("--check", *SIZES)
    assert re.findall(r"^data +8 images of \(3, (\d), \d\)", printed, re.M) == ["4", "6", "8"]
    assert len(re.findall(r"^training +one step in", printed, re.M)) == 3


def test_a_compiled_model_has_one_graph_for_each_size(trains_alike_compiled):
    flags = ("--epochs", 4, "--train-img-sizes", 4, 8, "--lr", 0.1, "--model-kwargs", "depth=5")
    trains_alike_compiled(*flags, *FUSE, graphs=2)


def test_a_teacher_must_take_every_size(error, trained):
    teacher = ("--teacher-model", "vim_pico_patch2_8", "--teacher-path", trained / "checkpoint.pth")
    line = error(*SIZES, *teacher, "--distillation-type", "soft")
    assert "--teacher-model vim_pico_patch2_8: no images of (4, 4): " in line


def test_a_gpu_resamples_in_any_order(error, monkeypatch):
    monkeypatch.setattr(main, "init_world", lambda device: main.World(torch.device("cuda"), 0, 1))
    monkeypatch.setattr(ssm, "pick", lambda device: ssm.backends.Choice("triton", ""))
    monkeypatch.setattr(main, "be_deterministic", lambda: None)
    assert "--deterministic: PyTorch resamples position embeddings" in error(*SIZES, "--deterministic")


# All that is random is on, with processes that load.
WHOLE = "--data-set DIGITS --batch-size 240 --num_workers 1 --warmup-epochs 0 --drop-path 0.2".split()


def test_a_training_on_the_digits(tmp_path):
    process = Forked([*WHOLE, *SIZES, *FUSE, "--output_dir", str(tmp_path)])
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert [line["image_size"] for line in read_log(tmp_path / "log.txt")] == [4, 6, 8]


def test_two_processes_learn_what_one_does(tmp_path):
    """The loss of each epoch, with half of the batch on each."""
    calm = ["--data-set", "DIGITS", *PLAIN, *SIZES, *FUSE]
    together(1, [*calm, "--batch-size", "240", "--output_dir", str(tmp_path / "one")])
    together(2, [*calm, "--batch-size", "120", "--output_dir", str(tmp_path / "two")])
    one, two = (read_log(tmp_path / name / "log.txt") for name in ("one", "two"))
    for column in ("image_size", "tokens_at_end"):
        assert [line[column] for line in one] == [line[column] for line in two]
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], rel=1e-4)
