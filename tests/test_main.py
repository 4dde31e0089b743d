"""main.py as people start it, on a folder of a few small images: what it prints, keeps, continues and refuses."""

import importlib.machinery
import importlib.util
import json
import re
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import IterableDataset

import datasets
import main
import models_mamba
import runner as run_module
import visualize
from fusion import pictures
from models_mamba import VisionMamba
from tests.fashion import write_fashion
from training.build.data import Data, build_data
from training.build.fusion import token_counts
from training.build.model import new_model
from training.build.objective import build_mixup, build_objective
from training.build.optimizer import build_average
from training.build.state import build_state, check_same_start
from training.data.loaders import augmented_images, train_loader
from training.records.runs import read_log
from training.runtime.distributed import World
from training.settings.command_line import parse_args

PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --no-model-ema --drop-path 0 --num_workers 0".split()
CPU = World(torch.device("cpu"), 0, 1)


@pytest.fixture
def run(images, capsys):
    """Run main.py in this process on the small folder; returns what it printed."""

    def call(*flags, data=("--data-set", "FOLDER", "--data-path", str(images))):
        main.main([*data, "--batch-size", "8", *PLAIN, *map(str, flags)])
        return capsys.readouterr().out

    return call


def state_of(*flags):
    """The training state that flags make, of a tiny model."""
    args = parse_args([*PLAIN, *map(str, flags)])
    model = VisionMamba(img_size=8, patch_size=4, embed_dim=16, depth=1, num_classes=3)
    return args, new_state(args, model)[0]


def new_state(args, model, world=CPU):
    """A training state and its facts, of a model and no images."""
    return build_state(args, world, model, "new", None, Data(None, None, None, 3), None)


# What a run prints and keeps


def test_screen_names_what_runs(run):
    flags = ("--fusion-strategy", "upper", "--fusion-layer", 3, "--fusion-token", 3)
    out = run("--epochs", 1, "--scan-backend", "reference", *flags)
    for expected in (
        "vim_pico_patch2_8, 155,138 parameters, 8 x 8 pixels",
        "FOLDER, 16 training and 6 test images, 2 classes",
        "cpu (",
        "reference backend (as asked for)",
        "upper from layer 3, 3 tokens a layer",
        "17 17 17 17 14 11 8",
        "8 x 1 process = 8",
        " = 0.0005 x 8 / 512",
        "nothing is saved",
    ):
        assert expected in out
    line, end = out.splitlines()[-2:]
    assert re.match(r"epoch 0/0: loss \S+, top-1 \S+ % .*, \S+ s .*images/s, peak memory \d+ MB", line)
    assert re.fullmatch(r"done: 1 epoch in 0:0\d:\d\d; best top-1 \S+ % in epoch 0; nothing was saved", end)


def test_an_epoch_leaves_a_line_scalars_and_checkpoints(run, tmp_path):
    run("--epochs", 2, "--model-ema", "--output_dir", tmp_path / "out")
    lines = read_log(tmp_path / "out" / "log.txt")
    assert [line["epoch"] for line in lines] == [0, 1]
    assert set(lines[0]) == {
        *("epoch", "scan_backend", "processes", "lr", "train_loss", "train_grad_norm", "train_seconds", "data_seconds"),
        *("skipped_steps", "cores_of_others"),
        *("images_per_second", "peak_memory_mb", "training_memory_mb"),
        *(f"{model}_{score}" for model in ("test", "test_ema") for score in ("loss", "acc1", "acc5", "seconds")),
    }
    settings = json.loads((tmp_path / "out" / "args.json").read_text())
    assert settings["token_counts"] == [17] * 7
    assert settings["versions"]["torch"] == torch.__version__
    assert list((tmp_path / "out").glob("events.*"))
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        saved = torch.load(tmp_path / "out" / name, weights_only=True)
        assert saved["model"].keys() == saved["model_ema"].keys()


def test_best_checkpoint_is_the_epoch_with_the_best_accuracy(run, tmp_path, monkeypatch):
    scores = iter([50.0, 80.0, 60.0])
    monkeypatch.setattr(
        run_module,
        "evaluate",
        lambda *args, **kwargs: {"acc1": next(scores)} | dict.fromkeys(("loss", "acc5", "seconds"), 0.0),
    )
    run("--epochs", 3, "--output_dir", tmp_path)
    assert torch.load(tmp_path / "best_checkpoint.pth", weights_only=True)["epoch"] == 2
    last = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert (last["epoch"], last["best_acc1"]) == (3, 80.0)


def test_the_end_says_the_best_epoch_the_time_and_the_place_of_the_whole_run(run, tmp_path, monkeypatch):
    scores = iter([80.0, 50.0, 60.0])
    monkeypatch.setattr(
        run_module,
        "evaluate",
        lambda *args, **kwargs: {"acc1": next(scores), "seconds": 3600.0} | dict.fromkeys(("loss", "acc5"), 0.0),
    )
    out = run("--epochs", 2, "--output_dir", tmp_path)
    assert re.search(r"^epoch 0/1: .*, 1:0\d:\d\d left$", out, re.M)
    assert not re.search(r"^epoch 1/1: .* left$", out, re.M)
    out = run("--epochs", 3, "--output_dir", tmp_path, "--auto-resume")
    assert f"weights    {tmp_path}/checkpoint.pth, continues at epoch 2, step 0\n" in out
    end = rf"done: 3 epochs in 3:0\d:\d\d; best top-1 80.00 % in epoch 0; log.txt, .* are in {tmp_path}"
    assert re.fullmatch(end, out.splitlines()[-1])


def test_auto_resume_says_where_it_goes_on(run, tmp_path):
    out = run("--epochs", 1, "--auto-resume", "--check", "--output_dir", tmp_path)
    assert f"weights    new, no checkpoint in {tmp_path} yet\n" in out
    save, steps = run_module.save, []

    def stop(state, *args, **kwargs):
        save(state, *args, **kwargs)
        steps.append(state.sums.steps)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run("--epochs", 1, "--save-steps", 1, "--output_dir", tmp_path)
    assert steps == [1]
    out = run("--epochs", 1, "--auto-resume", "--output_dir", tmp_path)
    assert f"weights    {tmp_path}/checkpoint.pth, continues at epoch 0, step 1\n" in out
    assert "weights    new\n" in run("--epochs", 1)
    assert f"weights    {tmp_path}/checkpoint.pth\n" in run("--eval", "--resume", tmp_path / "checkpoint.pth")


def test_a_runs_record_repeats_it(run, error, tmp_path):
    flags = ("--epochs", 1, "--fusion-strategy", "all", "--fusion-token", 2, "--if_amp", "--lr", 0.1, "--drop", 0.1)
    run(*flags, "--output_dir", tmp_path / "first")
    record = tmp_path / "first" / "args.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "PLAIN", [])
        run("--config", record, "--output_dir", tmp_path / "again", data=())
        assert "holds a run already" in error("--config", record, data=())
    first, again = (read_log(tmp_path / name / "log.txt") for name in ("first", "again"))
    for column in ("train_loss", "test_loss", "lr"):
        assert again[0][column] == first[0][column]
    settings = [json.loads((tmp_path / name / "args.json").read_text()) for name in ("first", "again")]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} <= {"output_dir", "config", "date"}


def test_seed_decides_the_weights(run, tmp_path):
    weights = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("--epochs", 1, "--seed", seed, "--output_dir", tmp_path / name)
        weights[name] = torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"]["head.weight"]
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(error, monkeypatch):
    monkeypatch.setattr(VisionMamba, "forward", lambda self, x: self.head.bias.repeat(len(x), 1) * float("nan"))
    assert "main.py: error: epoch 0, step 0: the loss is nan" in error("--epochs", 1, code=1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"no image", None])
def test_a_broken_image_ends_the_run_in_one_line(error, images, tmp_path, workers, content):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    path = data / "train" / "dark" / "3.png"
    path.write_bytes(content or path.read_bytes()[:-60])
    complaint = error(
        "--epochs", 1, "--num_workers", workers, data=("--data-set", "FOLDER", "--data-path", str(data)), code=1
    )
    assert str(path) in complaint
    assert len(complaint) < 300


@pytest.mark.parametrize(
    ("flags", "counted"),
    [
        (("--max-bad-steps", 1), 8),
        (("--if_continue_inf",), 8),
        (("--if_nan2num",), 16),
        (("--if_continue_inf", "--if_nan2num"), 16),
    ],
)
def test_what_lets_a_bad_batch_pass(run, error, monkeypatch, tmp_path, flags, counted):
    """The network makes NaN of the first of two batches; --if_nan2num counts its loss, as 0, in the mean."""
    forward, losses = VisionMamba.forward, []

    def fail_first(self, x):
        losses.append(float("nan") if self.training and not losses else 1.0)
        return forward(self, x) * losses[-1]

    monkeypatch.setattr(VisionMamba, "forward", fail_first)
    assert "step 0: the loss is nan" in error("--epochs", 1, code=1)
    losses.clear()
    run("--epochs", 1, *flags, "--output_dir", tmp_path)
    (record,) = read_log(tmp_path / "log.txt")
    assert record["skipped_steps"] == 1
    assert record["train_loss"] * counted / 8 == pytest.approx(0.69, abs=0.2)


def test_gradients_are_clipped(run, tmp_path):
    """Plain SGD moves by the rate times the gradient."""
    moved = {}
    for name, flags in {"free": (), "clipped": ("--clip-grad", 1e-3)}.items():
        out = tmp_path / name
        sgd = (
            "--opt",
            "momentum",
            "--momentum",
            0,
            "--weight-decay",
            0,
            "--lr",
            1,
            "--unscale-lr",
            "--sched",
            "constant",
        )
        run("--epochs", 1, "--warmup-epochs", 0, *sgd, *flags, "--output_dir", out)
        moved[name] = torch.load(out / "checkpoint.pth", weights_only=True)["model"]["head.weight"]
    assert not torch.equal(moved["free"], moved["clipped"])
    assert read_log(tmp_path / "clipped" / "log.txt")[0]["train_grad_norm"] > 1e-2


def test_fp16_scales_the_loss_and_keeps_the_scale(run, tmp_path, monkeypatch):
    fp16 = ("--if_amp", "--amp-dtype", "float16", "--output_dir", tmp_path)
    scales = []
    train_one_epoch = run_module.train_one_epoch

    def spy(learner, *args, **kwargs):
        scales.append(learner.scaler.get_scale())
        record = train_one_epoch(learner, *args, **kwargs)
        learner.scaler.update(256.0)
        return record

    monkeypatch.setattr(run_module, "train_one_epoch", spy)
    run("--epochs", 1, *fp16)
    run("--epochs", 2, *fp16, "--resume", tmp_path / "checkpoint.pth")
    assert scales == [65536.0, 256.0]


def test_each_epoch_has_its_own_order_and_its_own_peak(run, monkeypatch):
    orders, events = [], []
    train_one_epoch = run_module.train_one_epoch

    def spy(learner, batches, *args, **kwargs):
        orders.append([draw.index for draw in batches.loader.batches.sampler])
        events.append("epoch")
        return train_one_epoch(learner, batches, *args, **kwargs)

    class Memory(run_module.PeakMemory):
        def reset(self):
            events.append("reset")
            super().reset()

        def start_training(self, **kwargs):
            events.append("start")
            super().start_training(**kwargs)

    monkeypatch.setattr(run_module, "train_one_epoch", spy)
    monkeypatch.setattr(run_module, "PeakMemory", Memory)
    run("--epochs", 2)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(16))
    assert events == ["reset", "start", "epoch", "reset", "epoch", "reset"]


def test_processes_start_from_the_same_weights_and_drop_differently(run, monkeypatch):
    weights, draws = [], []
    train_one_epoch = run_module.train_one_epoch

    def spy(learner, batches, options, world, *args, **kwargs):
        weights.append({name: value.clone() for name, value in learner.model.state_dict().items()})
        learner.model.register_forward_pre_hook(lambda *_: draws.append(torch.rand(1).item()))
        world = world._replace(rank=len(weights) - 1)
        return train_one_epoch(learner, batches, options, world, *args, **kwargs)

    monkeypatch.setattr(run_module, "train_one_epoch", spy)
    for _ in range(2):
        run("--epochs", 1)
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert len(set(draws[:2]) | set(draws[len(draws) // 2 :][:2])) == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_alone_downloads(monkeypatch, rank):
    args = parse_args([*PLAIN, "--download"])
    asked = []
    monkeypatch.setattr(datasets, "build_dataset", lambda train, args, classes: (asked.append(args.download), 10))
    monkeypatch.setattr("training.runtime.distributed.barrier", lambda world: None)
    build_data(args, CPU._replace(rank=rank, size=2))
    assert asked == [rank == 0] * 2


def test_a_stream_of_test_images_is_shared_out(run, monkeypatch, tmp_path):
    build_dataset, evaluate, shared = datasets.build_dataset, main.evaluate, []

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(3, 8, 8), 0)] * 4)

    def spy(*args, shared_out, **kwargs):
        shared.append(shared_out)
        return evaluate(*args, shared_out=shared_out, **kwargs)

    for module in (main, run_module):
        monkeypatch.setattr(module, "evaluate", spy)
    run("--epochs", 1)
    run("--epochs", 1, "--dist-eval")
    monkeypatch.setattr(
        datasets, "build_dataset", lambda train, *args: build_dataset(train, *args) if train else (Stream(), 2)
    )
    assert "16 training and streamed test images" in run("--epochs", 1, "--model-ema", "--output_dir", tmp_path)
    run("--eval", "--resume", tmp_path / "checkpoint.pth")
    assert shared == [False, True, True, True, True]


def test_mixed_precision_is_said_and_done(run, monkeypatch):
    seen = set()
    forward = VisionMamba.forward
    monkeypatch.setattr(
        VisionMamba,
        "forward",
        lambda self, x: (seen.add(self.layers[0].mixer.in_proj(torch.zeros(1, 1, 48)).dtype), forward(self, x))[1],
    )
    assert "mixed precision in bfloat16" in run("--epochs", 1, "--if_amp")
    assert seen == {torch.bfloat16}
    seen.clear()
    assert "mixed precision in float16" in run("--epochs", 1, "--if_amp", "--amp-dtype", "float16")
    assert seen == {torch.float16}
    seen.clear()
    assert "fp32" in run("--epochs", 1, "--no_amp")
    assert seen == {torch.float32}


def test_more_workers_than_cores_are_lowered_and_said(run, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    assert "1 loading process (--num_workers 25 lowered to the cores there are)" in run(
        "--epochs", 1, "--num_workers", 25
    )


# Continuing and evaluating


def test_resuming_equals_not_stopping(run, tmp_path):
    """Without random augmentation and dropout, which a checkpoint doesn't cover yet."""
    flags = ("--lr", 0.05, "--warmup-epochs", 1, "--model-ema", "--lr-noise", 0.5)
    run("--epochs", 4, *flags, "--output_dir", tmp_path / "whole")

    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        write = run_module.save

        def stop_after_two(state, *args, **kwargs):
            write(state, *args, **kwargs)
            if state.epoch == 2:
                raise KeyboardInterrupt

        patch.setattr(run_module, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            run("--epochs", 4, *flags, "--output_dir", stopped)
    run("--epochs", 4, *flags, "--output_dir", stopped, "--resume", stopped / "checkpoint.pth")

    whole, resumed = (
        torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (tmp_path / "whole", stopped)
    )
    for part in ("model", "model_ema", "optimizer"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    assert {name: resumed[name] for name in ("scheduler", "epoch", "best_acc1")} == {
        name: whole[name] for name in ("scheduler", "epoch", "best_acc1")
    }
    whole_log, resumed_log = (read_log(folder / "log.txt") for folder in (tmp_path / "whole", stopped))
    for name in ("epoch", "lr", "train_loss", "test_loss", "test_ema_loss"):
        assert [line[name] for line in resumed_log] == [line[name] for line in whole_log], name


def test_evaluating_a_checkpoint_with_and_without_fusion(run, tmp_path):
    run("--epochs", 2, "--lr", 0.1, "--model-ema", "--output_dir", tmp_path)
    line = read_log(tmp_path / "log.txt")[-1]

    def accuracy(out, name):
        return re.search(rf"{name}: top-1 (\S+) %, top-5 \S+ %, loss (\S+),", out).groups()

    out = run("--eval", "--model-ema", "--resume", tmp_path / "checkpoint.pth")
    assert accuracy(out, "model") == (f"{line['test_acc1']:.2f}", f"{line['test_loss']:.4f}")
    assert accuracy(out, "EMA") == (f"{line['test_ema_acc1']:.2f}", f"{line['test_ema_loss']:.4f}")
    assert "EMA" not in run("--eval", "--resume", tmp_path / "checkpoint.pth")
    fused = run("--eval", "--resume", tmp_path / "checkpoint.pth", "--fusion-strategy", "all", "--fusion-token", 2)
    assert "17 15 13 11 9 7 5" in fused
    assert accuracy(fused, "model")[1] != accuracy(out, "model")[1]


@pytest.mark.parametrize(
    "changed",
    [
        ("--fusion-total", 6),
        ("--fusion-keep", 0.75),
        ("--fusion-cost", 0.75),
        ("--fusion-token", 2, "--fusion-schedule", "decreasing"),
        ("--fusion-token", 2, "--fusion-average", "size"),
        ("--fusion-token", 2, "--fusion-metric", "residual"),
        ("--fusion-token", 2, "--fusion-metric", "input"),
        ("--fusion-token", 2, "--fusion-distance", "l2"),
        ("--fusion-token", 2, "--fusion-distance", "l1"),
        ("--fusion-token", 2, "--fusion-order", "concat"),
        ("--fusion-token", 2, "--fusion-reduce", "prune"),
        ("--fusion-token", 2, "--fusion-match", "random"),
        *[("--fusion-token", 2, "--fusion-metric", part) for part in ("delta", "B", "C", "scan")],
        *[("--fusion-token", 2, "--fusion-score", part) for part in ("delta", "scan")],
        ("--fusion-token", 2, "--fusion-score", "scan", "--fusion-match", "lowest"),
    ],
)
def test_every_flag_of_fusion_changes_what_a_trained_model_says(run, trained, changed):
    flags = ("--eval", "--resume", trained / "checkpoint.pth", "--fusion-strategy", "all")
    plain, other = run(*flags, "--fusion-token", 2), run(*flags, *changed)
    loss = [re.search(r"model: top-1 .* loss (\S+),", out).group(1) for out in (plain, other)]
    assert loss[0] != loss[1]


def test_the_first_screen_says_what_a_plan_by_cost_leaves(run, trained):
    """Of the model with the head that it will have: a model for 1000 classes would have another share."""
    said = {}
    for share in (0.7, 0.9):
        out = run("--eval", "--resume", trained / "checkpoint.pth", "--fusion-strategy", "all", "--fusion-cost", share)
        assert "fusion     all," in out
        said[share] = float(re.search(r"multiply-adds an image, forward, (\S+) of those without fusion", out).group(1))
    assert all(abs(found - share) < 0.01 for share, found in said.items())


def test_evaluation_takes_model_data_and_fusion_from_the_checkpoint(trained, capsys):
    line = read_log(trained / "log.txt")[-1]

    def evaluate(*flags):
        main.main(["--eval", "--resume", str(trained / "checkpoint.pth"), "--num_workers", "0", *flags])
        return capsys.readouterr().out

    out = evaluate()
    assert "17 17 17 17 15 13 11" in out
    assert f"model: top-1 {line['test_acc1']:.2f} %" in out
    assert f"loss {line['test_loss']:.4f}" in out
    assert "17 17 17 17 17 17 17" in evaluate("--fusion-strategy", "no")


def test_a_written_plan_is_printed(run, trained):
    out = run("--eval", "--resume", trained / "checkpoint.pth", "--fusion-plan", "0,8,4,0,2,1")
    assert "17 17 9 5 5 3 2" in out
    assert "by --fusion-plan" in out


def test_the_screen_says_how_tokens_fuse_and_what_it_costs(run):
    flags = ("--epochs", 1, "--fusion-strategy", "all", "--fusion-total", 9, "--fusion-schedule", "increasing")
    out = run(*flags, "--fusion-average", "size", "--fusion-distance", "l1")
    assert "fusion     all, 9 tokens in all, increasing, average size, distance l1; tokens" in out
    assert re.search(r"cost +\d million multiply-adds an image", out)


def test_finetuning_starts_from_weights_with_fusion_on(run, error, trained, tmp_path):
    checkpoint = trained / "checkpoint.pth"
    tiny = ("--lr", 1e-12, "--unscale-lr", "--warmup-epochs", 0, "--min-lr", 0)
    flags = ("--finetune", checkpoint, "--epochs", 1, *tiny)
    out = run(*flags, "--fusion-strategy", "all", "--fusion-token", 2, "--output_dir", tmp_path)
    assert f"weights    {checkpoint}" in out
    before, after = (torch.load(path, weights_only=True)["model"] for path in (checkpoint, tmp_path / "checkpoint.pth"))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-8)
    assert "weights    new" in run("--epochs", 1)
    fashion = write_fashion(tmp_path / "fashion", train=16, test=10, side=8)
    out = run("--finetune", checkpoint, "--epochs", 1, data=("--data-set", "FMNIST", "--data-path", str(fashion)))
    assert "with a new head for 10 classes" in out
    assert "--finetune: starts a new run, --resume continues one" in error(
        "--finetune", checkpoint, "--resume", checkpoint
    )
    assert "does not fit" in error("--finetune", checkpoint, "--model", "vim_nano_patch4_32")


def test_pictures_in_tensorboard(run, error, tmp_path):
    flags = ("--epochs", 3, "--fusion-strategy", "all", "--fusion-token", 2, "--output_dir", tmp_path)
    run(*flags, "--log-images", 2)
    board = EventAccumulator(str(tmp_path)).Reload()
    pictures = {"pictures/groups", "pictures/similarity", "pictures/tokens"}
    assert set(board.Tags()["images"]) == pictures | {"images/augmented"}
    assert [event.step for event in board.Images("pictures/groups")] == [1]
    assert "--log-images: needs a place, --output_dir DIR" in error("--log-images", 1)


def test_images_in_tensorboard_are_as_augmented(images):
    args = parse_args(["--data-set", "FOLDER", "--data-path", str(images), "--input-size", "8", *PLAIN])
    train_set, _ = datasets.build_dataset(True, args)
    batches = train_loader(train_set, args, CPU)
    shown = pictures.denormalised(new_model(args), augmented_images(batches))
    assert shown.shape == (16, 3, 8, 8)
    path = train_set.images[next(iter(batches.sampler)).index]
    np.testing.assert_allclose(shown[0], np.asarray(Image.open(path)).transpose(2, 0, 1) / 255, atol=1e-6)
    args = replace(args, no_aug=False)
    batches = train_loader(datasets.build_dataset(True, args)[0], args, CPU)
    drawn = []
    for epoch in (0, 0, 1):
        batches.sampler.set_epoch(epoch)
        drawn.append(augmented_images(batches))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    batches.sampler.set_epoch(1, start=16)  # as after a run that was interrupted in its last evaluation
    assert torch.equal(augmented_images(batches), drawn[2])


def test_weights_and_biases_follows_tensorboard(run, error, tmp_path, monkeypatch):
    if importlib.util.find_spec("wandb") is None:
        assert "--log-wandb: needs the package wandb" in error("--log-wandb", "--output_dir", tmp_path)
    calls = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init = lambda **kwargs: calls.append(kwargs)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    flags = ("--epochs", 1, "--output_dir", tmp_path / "out")
    run(*flags, "--log-wandb", "--wandb-project", "mine")
    (call,) = calls
    assert (call["project"], call["sync_tensorboard"], call["config"]["epochs"]) == ("mine", True, 1)
    run("--epochs", 1, "--output_dir", tmp_path / "other")
    assert len(calls) == 1


def test_a_finished_run_is_a_row_among_hyperparameters(run, tmp_path):
    run("--epochs", 2, "--fusion-strategy", "all", "--fusion-token", 2, "--output_dir", tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    last = read_log(tmp_path / "log.txt")[-1]
    assert board.Scalars("result/top1")[0].value == pytest.approx(last["test_acc1"])
    row = HParamsPluginData.FromString(
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert row["fusion"].string_value == "all"
    assert row["fused"].number_value == 12
    assert {"fused", "fusion"} <= set(sorted(row)[:5])  # the columns that are shown at first


def test_pictures_change_nothing_else(run, tmp_path):
    logs = []
    for name, flags in (("with", ("--log-images", 1)), ("without", ())):
        run("--epochs", 2, "--drop", 0.2, *flags, "--output_dir", tmp_path / name)
        logs.append([line["train_loss"] for line in read_log(tmp_path / name / "log.txt")])
    assert logs[0] == logs[1]


def straight_and_resumed(run, folder, *flags, epochs=8, stop=4):
    """The log of a run, and of one that was given fewer epochs and then went on to all."""
    run("--epochs", epochs, *flags, "--output_dir", folder / "straight")
    run("--epochs", stop, *flags, "--output_dir", folder / "resumed")
    checkpoint = folder / "resumed" / "checkpoint.pth"
    run("--epochs", epochs, *flags, "--output_dir", folder / "resumed", "--resume", checkpoint)
    return [read_log(folder / name / "log.txt") for name in ("straight", "resumed")]


def test_more_epochs_than_before_follow_the_longer_schedule(run, tmp_path):
    straight, resumed = straight_and_resumed(run, tmp_path, "--lr", 0.1, "--warmup-epochs", 2)
    assert [line["lr"] for line in resumed[4:]] == [line["lr"] for line in straight[4:]]
    assert resumed[3]["lr"] != straight[3]["lr"]


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize("noise", [(), ("--lr-noise", 0.25)])
def test_a_plateau_goes_on_with_what_it_has_seen(run, tmp_path, monkeypatch, noise):
    scores = iter([50.0, 40.0, 40.0, 40.0, 40.0, 40.0, 45.0, 45.0] * 2)  # it stops in the middle of its patience
    monkeypatch.setattr(
        run_module,
        "evaluate",
        lambda *args, **kwargs: {"acc1": next(scores)} | dict.fromkeys(("loss", "acc5", "seconds"), 0.0),
    )
    decay = ("--decay-rate", 0.5, "--layer-decay", 0.9)
    flags = ("--sched", "plateau", "--warmup-epochs", 0, "--patience-epochs", 2, *decay, "--lr", 1)
    straight, resumed = (
        [line["lr"] for line in log]
        for log in straight_and_resumed(run, tmp_path, *flags, "--min-lr", 0, "--opt", "sgd", *noise, stop=3)
    )
    assert len(set(straight)) > 2
    if not noise:  # it starts at a part of the schedule, whose length differs before the stop
        assert resumed == straight
    else:
        saved = torch.load(tmp_path / "resumed" / "checkpoint.pth", weights_only=True)["scheduler"]
        assert resumed[4:] == pytest.approx(straight[4:])
        assert saved["restore_lr"]


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize(("warmup", "start"), [(1, 2), (2, 1), (0, 1)])
def test_a_plateau_that_starts_late_has_its_rate(run, tmp_path, warmup, start):
    """At once if it starts beyond the warm-up, and on the way to it before that."""
    plateau = ("--sched", "plateau", "--warmup-epochs", warmup, "--lr", 0.1, "--warmup-lr", 0.02, "--unscale-lr")
    run("--epochs", 4, *plateau, "--start_epoch", start, "--output_dir", tmp_path / "late")
    run("--epochs", start, "--lr", 1e-3, "--output_dir", tmp_path / "cosine")
    run("--epochs", 4, *plateau, "--auto-resume", "--output_dir", tmp_path / "cosine")
    for folder in ("late", "cosine"):
        rates = [line["lr"] for line in read_log(tmp_path / folder / "log.txt") if line["epoch"] >= start]
        assert rates[-1] == pytest.approx(0.1)
        assert rates[0] == pytest.approx(0.06 if start < warmup else 0.1)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_a_resumed_plateau_takes_the_new_rate(run, tmp_path):
    plateau = ("--sched", "plateau", "--warmup-epochs", 0, "--unscale-lr", "--output_dir", tmp_path)
    run("--epochs", 1, *plateau, "--lr", 0.1)
    run("--epochs", 2, *plateau, "--lr", 0.01, "--auto-resume")
    assert [line["lr"] for line in read_log(tmp_path / "log.txt")] == pytest.approx([0.1, 0.01])


def test_fusion_is_compiled_before_the_first_step(run, monkeypatch):
    """An epoch's time would contain it."""
    events = []
    train_one_epoch = run_module.train_one_epoch
    monkeypatch.setattr(main, "prepare", lambda device_type: events.append(device_type))
    monkeypatch.setattr(
        run_module, "train_one_epoch", lambda *a, **kw: events.append("epoch") or train_one_epoch(*a, **kw)
    )
    run("--epochs", 1, "--fusion-strategy", "all", "--fusion-token", 1)
    assert events == ["cpu", "epoch"]
    events.clear()
    run("--epochs", 1)
    assert events == ["epoch"]


def test_hyperparameters_are_those_given_now(run, tmp_path, monkeypatch):
    run("--epochs", 1, "--output_dir", tmp_path)
    states = []
    monkeypatch.setattr(main, "train", lambda trainer, *rest: states.append(trainer.state))
    now = ("--weight-decay", 0.7, "--opt-eps", 0.3, "--opt-betas", 0.1, 0.2, "--lr", 0.5, "--unscale-lr")
    flags = ("--epochs", 3, "--warmup-epochs", 0, "--sched", "constant", *now)
    run(*flags, "--output_dir", tmp_path, "--resume", tmp_path / "checkpoint.pth")
    groups = states[0].optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0, 0.7}
    assert {(group["eps"], group["betas"], group["lr"]) for group in groups} == {(0.3, (0.1, 0.2), 0.5)}
    assert states[0].optimizer.state  # what the optimizer gathered is there
    for regrouped in (("--weight-decay", 0), ("--layer-decay", 0.5)):
        run(*flags, *regrouped, "--output_dir", tmp_path, "--resume", tmp_path / "checkpoint.pth")
        gathered = states[-1].optimizer.state
        assert all(parameter in gathered for parameter in states[-1].model.parameters())


@pytest.mark.parametrize("flags", [("--resume", "{}/checkpoint.pth"), ("--start_epoch", 2), ("--start_epoch", 9)])
def test_a_finished_run_says_so(run, tmp_path, flags):
    run("--epochs", 2, "--output_dir", tmp_path)
    before = (tmp_path / "log.txt").read_text()
    flags = [str(flag).format(tmp_path) for flag in flags]
    output = ("--output_dir", tmp_path) if "--resume" in flags else ()
    assert run("--epochs", 2, *output, *flags).splitlines()[-1] == "nothing left to train: the last epoch, 1, is done"
    assert (tmp_path / "log.txt").read_text() == before


def test_average_of_published_names_is_evaluated(run, error, tmp_path):
    """One that doesn't fit is refused before anything is evaluated."""
    run("--epochs", 1, "--model-ema", "--output_dir", tmp_path)
    own = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    names = {ours: published for published, ours in models_mamba._PUBLISHED_NAMES.items()}
    published = {"model": {}, "model_ema": {}}
    for entry, weights in published.items():
        for key, value in own[entry].items():
            prefix, mixer, name = key.partition(".mixer.")
            weights[f"{prefix}{mixer}{names.get(name, name)}"] = value
    torch.save(published, tmp_path / "published.pth")
    expected = run("--eval", "--model-ema", "--resume", tmp_path / "checkpoint.pth")
    found = run("--eval", "--model-ema", "--resume", tmp_path / "published.pth")

    def scores(out):
        return re.findall(r"^(\w+: top-1 .*, loss \S+),", out, re.M)

    assert len(scores(found)) == 2
    assert scores(found) == scores(expected)
    published["model_ema"]["head.bias"] = torch.zeros(7)
    torch.save(published, tmp_path / "published.pth")
    complaint = error("--eval", "--model-ema", "--resume", tmp_path / "published.pth")
    assert "published.pth: its model_ema: does not fit this model: 1 of another shape (first: head.bias" in complaint
    assert "model: top-1" in run("--eval", "--resume", tmp_path / "published.pth")


def test_evaluation_reads_test_images_alone(run, tmp_path, monkeypatch):
    run("--epochs", 1, "--output_dir", tmp_path)
    built, build_dataset = [], datasets.build_dataset
    monkeypatch.setattr(
        datasets, "build_dataset", lambda train, *args: (built.append(train), build_dataset(train, *args))[1]
    )
    assert "FOLDER, 6 test images, 2 classes" in run("--eval", "--resume", tmp_path / "checkpoint.pth")
    assert built == [False]


def test_start_epoch_skips_ahead_in_the_schedule(run, tmp_path):
    run("--epochs", 4, "--start_epoch", 3, "--warmup-epochs", 0, "--output_dir", tmp_path)
    (line,) = read_log(tmp_path / "log.txt")
    assert line["epoch"] == 3
    assert 0 < line["lr"] < 0.5 * 5e-4 * 8 / 512 + 1e-5


# Flags of the optimizer, the schedule and the model


def test_learning_rate_rule():
    _, state = state_of("--batch-size", 256, "--warmup-epochs", 0)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4)
    _, state = state_of("--batch-size", 256, "--warmup-epochs", 0, "--unscale-lr", "--lr", 0.3)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    args = parse_args(["--batch-size", "64"])
    model = VisionMamba(img_size=8, patch_size=4, embed_dim=16, depth=1, num_classes=3)
    _, facts = new_state(args, model, CPU._replace(size=4))
    assert facts.scaled_lr == pytest.approx(5e-4 * 256 / 512)


@pytest.mark.parametrize(("flags", "scale"), [((), 0.25), (("--unscale-lr",), 1)])
def test_the_rates_of_warm_up_and_end_are_scaled_likewise(flags, scale):
    """A small batch would else warm up from, or decay to, what is no smaller than its rate."""
    rates = ("--lr", 8e-4, "--warmup-lr", 2e-4, "--min-lr", 1e-4, "--warmup-epochs", 2, "--epochs", 6)
    _, state = state_of("--batch-size", 128, *rates, *flags)
    found = []
    for _ in range(7):
        found.append(state.optimizer.param_groups[0]["lr"] / scale)
        state.finish_epoch(0.0)
    assert found[:2] == pytest.approx([2e-4, 5e-4])
    assert found[6] == pytest.approx(1e-4)
    assert max(found) < 8e-4


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--opt", "adamw", "--opt-eps", 1e-3), "eps", 1e-3),
        (("--opt-betas", 0.7, 0.8), "betas", (0.7, 0.8)),
        (("--opt", "sgd", "--momentum", 0.3), "momentum", 0.3),
    ],
)
def test_optimizer_flags(flags, name, value):
    _, state = state_of(*flags)
    assert all(group[name] == value for group in state.optimizer.param_groups)


def test_weight_decay_spares_what_it_should():
    _, state = state_of("--weight-decay", 0.3)
    spared, decayed = sorted(state.optimizer.param_groups, key=lambda group: group["weight_decay"])
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0, 0.3)
    names = {id(p): name for name, p in state.model.named_parameters()}
    assert {"pos_embed", "cls_token", "norm_f.weight"} <= {names[id(p)] for p in spared["params"]}
    assert not any(names[id(p)].endswith(("A_log", ".D", "bias")) for p in decayed["params"])


def test_other_optimizers():
    _, state = state_of("--opt", "lamb")
    assert type(state.optimizer).__name__ == "Lamb"


def rates(*flags, accuracies=(), epochs=12):
    """Learning rates of the epochs, as training steps the schedule."""
    _, state = state_of("--lr", 1.0, "--unscale-lr", "--epochs", epochs, *flags)
    found = []
    for epoch in range(epochs):
        found.append(state.optimizer.param_groups[0]["lr"])
        state.finish_epoch(accuracies[epoch] if accuracies else float(epoch))
    return found


def test_warm_up():
    found = rates("--warmup-epochs", 4, "--warmup-lr", 0.2)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_cosine_ends_at_min_lr():
    found = rates("--warmup-epochs", 0, "--min-lr", 0.1)
    assert found[0] == 1
    assert found[6] == pytest.approx(0.55)
    assert found == sorted(found, reverse=True)
    assert 0.1 < found[-1] < 0.15


def test_cooldown_adds_epochs_at_the_lowest_rate():
    _, state = state_of("--epochs", 3, "--cooldown-epochs", 2)
    assert state.settings["last_epoch"] == 5
    found = rates("--warmup-epochs", 0, "--min-lr", 0.1, "--cooldown-epochs", 3, epochs=15)
    flags = ("--warmup-epochs", 0, "--min-lr", 0.1, "--lr", 1, "--unscale-lr")
    _, state = state_of("--epochs", 3, "--cooldown-epochs", 2, *flags)
    state.scheduler.step(4)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert found[0] == 1


def test_step_decays_every_decay_epochs_by_decay_rate():
    found = rates("--sched", "step", "--warmup-epochs", 0, "--decay-epochs", 5, "--decay-rate", 0.5)
    assert found == pytest.approx([1] * 5 + [0.5] * 5 + [0.25] * 2)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize("patience", [1, 3])
def test_plateau_waits_patience_epochs(patience):
    flags = ("--sched", "plateau", "--warmup-epochs", 0, "--patience-epochs", patience, "--decay-rate", 0.5)
    found = rates(*flags, accuracies=[50.0] * 12)
    assert found.index(0.5) == patience + 2


@pytest.mark.parametrize("sched", ["tanh", "poly", "constant"])
def test_other_schedules(sched):
    found = rates("--sched", sched, "--warmup-epochs", 0)
    assert (found[-1] == found[0]) == (sched == "constant")


def test_a_rate_for_every_step(run, error, monkeypatch):
    found, step = [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        found.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    flags = ("--epochs", 4, "--warmup-epochs", 1, "--lr", 1e-3, "--unscale-lr", "--min-lr", 0, "--batch-size", 4)
    run(*flags)
    assert [len(set(found[i : i + 4])) for i in range(0, 16, 4)] == [1] * 4
    found.clear()
    run(*flags, "--sched-on-updates")
    assert found[:4] == pytest.approx([1e-6, 0.00025075, 0.0005005, 0.00075025])  # 1e-6 is --warmup-lr
    assert found[4:] == sorted(found[4:], reverse=True)
    assert len(set(found)) == 16
    assert found[-1] < 2e-5
    assert "--sched-on-updates: --sched plateau goes by" in error("--sched-on-updates", "--sched", "plateau")


def test_noise_on_the_rate():
    quiet = rates("--sched", "constant", "--warmup-epochs", 0)
    noisy = rates("--sched", "constant", "--warmup-epochs", 0, "--lr-noise", 0.25, 0.75)
    changed = [i for i in range(12) if noisy[i] != quiet[i]]
    assert changed == [3, 4, 5, 6, 7, 8]
    assert max(abs(rate - 1) for rate in noisy) < 0.67
    other_seed = rates("--sched", "constant", "--warmup-epochs", 0, "--lr-noise", 0.25, 0.75, "--seed", 7)
    assert other_seed != noisy
    small = rates("--sched", "constant", "--warmup-epochs", 0, "--lr-noise", 0.25, "--lr-noise-pct", 0.01)
    assert 0 < max(abs(rate - 1) for rate in small) < 0.01
    smaller = rates("--sched", "constant", "--warmup-epochs", 0, "--lr-noise", 0.25, "--lr-noise-std", 1e-4)
    assert 0 < max(abs(rate - 1) for rate in smaller) < 1e-3


def test_average_of_weights_flags():
    assert state_of()[1].ema is None
    _, state = state_of("--model-ema", "--model-ema-decay", 0.5)
    assert state.ema.decay == 0.5


@pytest.mark.parametrize(
    ("flags", "attributes"),
    [
        (("--mixup", 0.3), {"mixup_alpha": 0.3}),
        (("--cutmix", 0.4), {"cutmix_alpha": 0.4}),
        (("--cutmix-minmax", 0.2, 0.8), {"cutmix_minmax": [0.2, 0.8]}),
        (("--mixup", 1, "--mixup-prob", 0.2), {"mix_prob": 0.2}),
        (("--mixup", 1, "--cutmix", 1, "--mixup-switch-prob", 0.2), {"switch_prob": 0.2}),
        (("--mixup", 1, "--mixup-mode", "elem"), {"mode": "elem"}),
        (("--mixup", 1, "--smoothing", 0.3), {"label_smoothing": 0.3}),
    ],
)
def test_mixup_flags(flags, attributes):
    args = parse_args([*PLAIN, "--input-size", "8", *map(str, flags)])
    args = replace(args, nb_classes=3)
    mixup = build_mixup(args)
    assert {name: getattr(mixup, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    "flags",
    [
        ("--mixup", 0.1),
        ("--mixup", 0, "--cutmix", 1),
        ("--cutmix-minmax", 0.2, 0.3, "--mixup", 0),
        ("--mixup-prob", 0),
        ("--cutmix", 1, "--mixup-switch-prob", 1),
        ("--mixup-mode", "elem"),
        ("--smoothing", 0.4),
    ],
    ids=lambda flags: flags[0],
)
def test_each_flag_changes_the_mixed_batch(flags):
    def mixed(*given):
        args = parse_args([*PLAIN, "--input-size", "8", "--mixup", "0.8", *map(str, given)])
        args = replace(args, nb_classes=8)
        np.random.seed(3)
        generator = torch.Generator().manual_seed(0)
        return build_mixup(args)(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8))

    for plain, changed in zip(mixed(), mixed(*flags), strict=True):
        same = flags[0] == "--smoothing" and plain.ndim == 4
        assert torch.equal(plain, changed) == same


@pytest.mark.parametrize(
    ("part", "learns"),
    [
        ("all", {"patch_embed", "cls_token", "pos_embed", "norm", "mixer", "head"}),
        ("mixer", {"mixer", "head", "pos_embed"}),
        ("head", {"head"}),
    ],
)
def test_only_a_part_learns(run, tmp_path, part, learns):
    run("--epochs", 1, "--output_dir", tmp_path / "before")
    before = tmp_path / "before" / "checkpoint.pth"
    flags = ("--epochs", 1, "--warmup-epochs", 0, "--lr", 1, "--finetune", before, "--train-only", part)
    run(*flags, "--output_dir", tmp_path / "after")
    old, new = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"] for name in ("before", "after")
    )
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    kinds = ("patch_embed", "cls_token", "pos_embed", "norm", "mixer", "head")
    assert {kind for name in changed for kind in kinds if kind in name} == learns


def test_deeper_layers_learn_faster(run, tmp_path):
    def rate_of(*flags):
        args = parse_args(["--lr", "1", "--unscale-lr", "--warmup-epochs", "0", *flags])
        model = new_model(args)
        state, _ = new_state(args, model)
        rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
        return [rates[id(block.mixer.in_proj.weight)] for block in model.layers], rates[id(model.head.weight)]

    run("--epochs", 1, "--layer-decay", 0.5, "--lr", 1, "--unscale-lr", "--warmup-epochs", 0, "--output_dir", tmp_path)
    assert read_log(tmp_path / "log.txt")[0]["lr"] == 1  # the head's, and not the stem's, which comes first
    layers, head = rate_of("--layer-decay", "0.5")
    assert head == 1
    assert layers == pytest.approx([2.0**-power for power in range(6, 0, -1)])
    assert set(rate_of()[0]) == {1}


def test_layers_are_computed_again_where_that_is_asked_for():
    assert new_model(parse_args(["--grad-checkpointing"])).grad_checkpointing
    assert not new_model(parse_args([])).grad_checkpointing


def test_a_compiled_model_trains_alike_and_is_compiled_once(trains_alike_compiled):
    flags = ("--epochs", 2, "--lr", 0.1, "--warmup-epochs", 0, "--model-ema", "--drop-path", 0.2)
    fusion = ("--fusion-strategy", "upper", "--fusion-layer", 3, "--fusion-token", 2)
    trains_alike_compiled(*flags, *fusion, graphs=1)


def test_an_average_off_the_gpu_is_kept_and_not_evaluated():
    args = parse_args(["--model-ema-force-cpu"])
    model = new_model(args)
    assert build_average(args, model).device == torch.device("cpu")
    assert build_average(parse_args([]), model).device is None
    state, _ = new_state(args, model)
    assert len(state.evaluated_models()) == 2
    state.ema.device = torch.device("meta")  # any other than the model's
    assert len(state.evaluated_models()) == 1


@pytest.mark.parametrize("flag", ["--if_random_cls_token_position", "--if_random_token_rank"])
def test_evaluation_needs_nothing_of_random_orders(run, tmp_path, flag):
    run("--epochs", 1, flag, "--output_dir", tmp_path)
    lines = [run("--eval", "--resume", tmp_path / "checkpoint.pth", *flags) for flags in ((), (flag,))]
    scores = [re.findall("^model: .* loss [0-9.]+", text, re.M) for text in lines]
    assert scores[0] == scores[1] != []


@pytest.mark.parametrize("flag", ["--if_random_cls_token_position", "--if_random_token_rank"])
def test_orders_of_the_sequence_change_what_is_learnt(run, tmp_path, flag):
    logs = []
    for name, flags in (("usual", ()), ("random", (flag,)), ("again", (flag,))):
        run("--epochs", 1, "--warmup-epochs", 0, "--lr", 0.1, *flags, "--output_dir", tmp_path / name)
        (line,) = read_log(tmp_path / name / "log.txt")
        logs.append((line["train_loss"], line["test_loss"]))
    assert logs[0] != logs[1] == logs[2]


def teacher_flags(name, path, kind="soft"):
    return "--teacher-model", name, "--teacher-path", path, "--distillation-type", kind


def test_distillation_flags(run, trained, tmp_path):
    path = trained / "checkpoint.pth"
    losses = {}
    for name, flags in {
        "alone": (),
        "soft": teacher_flags("vim_pico_patch2_8", path),
        "hard": teacher_flags("vim_pico_patch2_8", path, "hard"),
        "more": (*teacher_flags("vim_pico_patch2_8", path), "--distillation-alpha", 0.9),
        "hot": (*teacher_flags("vim_pico_patch2_8", path), "--distillation-tau", 3),
    }.items():
        run("--epochs", 1, *flags, "--output_dir", tmp_path / name)
        losses[name] = read_log(tmp_path / name / "log.txt")[0]["train_loss"]
    assert len(set(losses.values())) == 5


def test_a_teacher_of_timm(run, error, trained, tmp_path):
    teacher = timm.create_model("test_resnet", num_classes=2)
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    out = run("--epochs", 1, *teacher_flags("test_resnet", tmp_path / "teacher.pth"))
    assert "epoch 0/0" in out
    assert "teacher.pth: does not fit" in error(*teacher_flags("test_vit", tmp_path / "teacher.pth"))
    assert "--teacher-path gone.pth: no such file" in error(*teacher_flags("test_resnet", "gone.pth"))
    vit = timm.create_model("test_vit", num_classes=2)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    assert "--teacher-model test_vit: no images of (8, 8)" in error(*teacher_flags("test_vit", tmp_path / "vit.pth"))


def test_grey_images(run, tmp_path):
    """Trained, evaluated and pictured."""
    out = run("--in-chans", 1, "--epochs", 1, "--log-images", 1, "--output_dir", tmp_path / "grey")
    assert "8 x 8 pixels, grey" in out
    saved = torch.load(tmp_path / "grey" / "checkpoint.pth", weights_only=True)
    assert saved["model"]["patch_embed.proj.weight"].shape[1] == 1
    fusion = ("--fusion-strategy", "all", "--fusion-token", "1", "--output_dir", str(tmp_path / "pictures"))
    visualize.main(["--resume", str(tmp_path / "grey" / "checkpoint.pth"), *fusion])
    assert (tmp_path / "pictures" / "groups.png").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--bce-loss", "--smoothing", 0),
        ("--bce-loss", "--smoothing", 0, "--mixup", 0.8),
        ("--cosub", "--drop-path", 0.5),
        ("--cosub", "--drop-path", 0.5, "--bce-loss", "--smoothing", 0, "--mixup", 0.8),
    ],
)
def test_other_losses_train(run, tmp_path, flags):
    usual = [flag for flag in flags if flag not in ("--bce-loss", "--cosub")]
    losses = []
    for name, chosen in (("usual", usual), ("other", flags)):
        run("--epochs", 1, *chosen, "--output_dir", tmp_path / name)
        losses.append(read_log(tmp_path / name / "log.txt")[0]["train_loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("flags", "soft"),
    [
        (("--bce-loss", "--smoothing", "0"), False),
        (("--cosub",), True),
        (("--cosub", "--bce-loss", "--smoothing", "0"), False),
    ],
)
def test_what_is_binary(flags, soft):
    """--bce-loss takes mixed targets above 0 for 1, as DeiT III; --cosub is binary with and without it."""
    objective = build_objective(parse_args([*flags, "--mixup", "1", "--drop-path", "0.5"]), CPU)
    logits, targets = torch.randn(2, 3), torch.tensor([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0]])
    expected = F.binary_cross_entropy_with_logits(logits, targets if soft else targets.gt(0).float())
    torch.testing.assert_close(objective.criterion(logits, targets), expected)


def test_accumulating_is_a_larger_batch(run, tmp_path):
    for name, flags in (("large", ("--batch-size", 8)), ("parts", ("--batch-size", 2, "--grad-accum-steps", 4))):
        out = run("--epochs", 1, "--warmup-epochs", 0, "--lr", 0.1, *flags, "--output_dir", tmp_path / name)
    assert "2 x 1 process x 4 accumulated = 8" in out
    large, parts = (read_log(tmp_path / name / "log.txt")[0] for name in ("large", "parts"))
    assert parts["train_loss"] == pytest.approx(large["train_loss"], rel=1e-5)
    assert parts["train_grad_norm"] == pytest.approx(large["train_grad_norm"], rel=1e-4)
    assert parts["lr"] == large["lr"]


def test_no_mixup_unless_asked_for():
    assert build_mixup(parse_args(PLAIN)) is None


def test_model_flags():
    args = parse_args("--model vim_nano_patch4_32 --drop 0.2 --drop-path 0.3 --input-size 16 24".split())
    model = new_model(args)
    assert model.patch_embed.grid_size == (4, 6)
    assert model.pos_drop.p == 0.2
    assert model.drop_path.drop_prob == pytest.approx(0.3)
    assert token_counts(model) == (25,) * 13


def test_smoothing_without_mixing(run, tmp_path):
    for smoothing in (0.0, 0.4):
        run("--epochs", 1, "--smoothing", smoothing, "--output_dir", tmp_path / str(smoothing))
    losses = [read_log(tmp_path / name / "log.txt")[0]["train_loss"] for name in ("0.0", "0.4")]
    assert losses[0] != losses[1]


# What is refused


def test_a_checkpoint_of_another_model(run, error, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path)
    complaint = error("--model", "vim_nano_patch4_32", "--input-size", 8, "--resume", tmp_path / "checkpoint.pth")
    assert "does not fit this model" in complaint
    weights = {"model": torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model"]}
    torch.save(weights, tmp_path / "weights.pth")
    assert "weights.pth: holds no model_ema, ema_steps, grid_size, opt, optimizer" in error(
        "--resume", tmp_path / "weights.pth"
    )
    assert "model: top-1" in run("--eval", "--resume", tmp_path / "weights.pth")


@pytest.fixture
def untouched(monkeypatch):
    """Fail if data are built: what is wrong must be seen before."""

    def build_data(*args):
        raise AssertionError("data were built")

    monkeypatch.setattr(main, "build_data", build_data)


@pytest.mark.parametrize("content", [{}, {"model": {"a": 1}}, [1]])
def test_a_checkpoint_without_weights_is_refused_before_data_are_built(error, tmp_path, untouched, content):
    torch.save(content, tmp_path / "x.pth")
    for flags in ((), ("--eval",)):
        assert "x.pth: " in error("--resume", tmp_path / "x.pth", *flags)


def test_a_checkpoint_that_cannot_be_continued(run, error, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path)
    path = tmp_path / "checkpoint.pth"
    assert "checkpoint.pth: was trained by --opt adamw" in error("--opt", "sgd", "--resume", path)
    complaint = error("--input-size", 16, "--resume", path)
    assert "was trained on (4, 4) patches and can't be continued on (8, 8)" in complaint
    run("--eval", "--input-size", 16, "--resume", path)
    whole = torch.load(path, weights_only=True)
    for broken in (
        {"optimizer": None},
        {"optimizer": {}},
        {"epoch": "x"},
        {"epoch": -5},
        {"grid_size": (9, 9)},
        {"grid_size": None},
        {"sums": whole["sums"] | {"steps": 10**6}},
    ):
        torch.save(whole | broken, path)
        assert "checkpoint.pth" in error("--resume", path) or "grid_size" in broken
    assert "1000000 steps of its epoch are done, which has 2 now" in error("--resume", path)
    torch.save({name: value for name, value in whole.items() if name != "best_acc1"}, path)
    assert "holds no best_acc1" in error("--resume", path)


def test_an_output_directory_is_looked_at_before_data_are_built(error, tmp_path, untouched):
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n')
    assert "holds a run already" in error("--output_dir", tmp_path)


def test_another_runs_checkpoint_does_not_open_a_runs_directory(run, error, tmp_path):
    for name in ("a", "b"):
        run("--epochs", 1, "--output_dir", tmp_path / name)
    flags = ("--epochs", 2, "--resume", tmp_path / "b" / "checkpoint.pth", "--output_dir")
    assert "holds a run already" in error(*flags, tmp_path / "a")
    run(*flags, tmp_path / "c")
    assert [line["epoch"] for line in read_log(tmp_path / "c" / "log.txt")] == [1]


def test_names_are_checked_before_processes_are_started(error, monkeypatch):
    monkeypatch.setattr(main, "relaunch", lambda *args: pytest.fail("processes were started"))
    assert "no such name" in error("--world_size", 2, "--model", "vim")


@pytest.mark.parametrize(
    ("flags", "data", "said"),
    [
        (("--fusion-strategy", "all", "--fusion-token", 4), ("--data-set", "DIGITS"), False),
        ((), ("--data-set", "FOLDER", "--data-path", "/nowhere"), True),
        (("--resume", "missing.pth"), ("--data-set", "DIGITS"), True),
    ],
)
def test_what_another_machine_alone_can_meet_is_said_by_it(run, capsys, monkeypatch, flags, data, said):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit):
        run(*flags, data=data)
    assert ("rank 1: " in capsys.readouterr().err) == said


def test_an_output_directory_of_another_run(run, error, tmp_path):
    run("--epochs", 1, "--output_dir", tmp_path)
    before = (tmp_path / "log.txt").read_text()
    assert "holds a run already" in error("--epochs", 1, "--output_dir", tmp_path)
    assert (tmp_path / "log.txt").read_text() == before


def test_scheduler_arguments_are_timms():
    """timm reads flags by name; a renamed flag would silently fall back to timm's default."""
    _, state = state_of("--warmup-epochs", 2, "--min-lr", 0.3, "--lr", 1, "--unscale-lr", "--seed", 5)
    found = state.scheduler
    assert (found.warmup_t, found.lr_min, found.noise_seed) == (2, 0.3, 5)


def test_deterministic_training_is_refused_where_the_scan_is_not():
    args = parse_args(["--deterministic"])
    main.check_scan(args, "cpu")
    with pytest.raises(ValueError, match="--deterministic: mamba-ssm sums gradients in any order"):
        main.check_scan(args, "cuda")
    main.check_scan(args, "triton")


def test_what_can_be_compiled():
    args = parse_args(["--compile"])
    for scan in ("cpu", "triton"):
        main.check_scan(args, scan)
    with pytest.raises(ValueError, match="--compile: needs the C\\+\\+ scan of CPUs or Triton's of GPUs"):
        main.check_scan(args, "cuda")


def test_processes_must_start_together(monkeypatch):
    _, state = state_of()
    check_same_start(state, CPU)
    monkeypatch.setattr(
        "training.build.state.all_reduce", lambda values, world, op: [0.0, 0.0] if op == "MIN" else [3.0, 0.0]
    )
    with pytest.raises(ValueError, match="processes start at different steps"):
        check_same_start(state, CPU)


def test_the_screen_says_where_all_epochs_are_warm_up(run):
    assert "1 epoch, all warm-up" in run("--epochs", 1)
    assert "warm-up" not in run("--epochs", 1, "--warmup-epochs", 0)


def test_what_the_optimizer_holds():
    """Two averages for every weight, in fp32."""
    _, state = state_of()
    assert state.optimizer_mb() == 0
    state.model(torch.zeros(1, 3, 8, 8)).sum().backward()
    state.optimizer.step()
    weights = sum(parameter.numel() for parameter in state.model.parameters())
    assert state.optimizer_mb() == pytest.approx(2 * 4 * weights / 2**20, rel=0.01)


def test_too_little_memory_is_one_line(error, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(main, "train", full)
    line = error("--epochs", 1, code=1)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB. (a smaller --batch-size" in line
