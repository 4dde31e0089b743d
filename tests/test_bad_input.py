"""What is refused: each in one line that names the culprit, with exit code 2 or, in training, 1; nothing is written."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
import runner
from training.build.model import new_model
from training.state.training_state import TrainingState

ROOT = Path(__file__).parents[1]
PLAIN = "--no-aug --mixup 0 --cutmix 0 --num_workers 0 --batch-size 4 --epochs 1".split()
FUSE = "--fusion-strategy upper --fusion-layer 3 --fusion-token 2"

FLAGS = [
    ("--batch 8", "unknown argument --batch, did you mean --batch-size"),
    ("--fusion-tokn=8", "did you mean --fusion-token"),
    ("stray", "unknown argument stray"),
    # types and ranges
    ("--batch-size 0", "--batch-size: must be 1 or more, not 0"),
    ("--batch-size eight", "'eight' is not a whole number"),
    ("--batch-size 2.5", "'2.5' is not a whole number"),
    ("--lr 0", "--lr: must be above 0, not 0"),
    ("--lr nan", "--lr: must be above 0"),
    ("--drop-path 1.5", "--drop-path: must be 0 to 1, not 1.5"),
    ("--mixup-prob -1", "--mixup-prob: must be 0 to 1"),
    ("--num_workers -1", "--num_workers: must be 0 or more, not -1"),
    ("--eval-crop-ratio 0", "--eval-crop-ratio: must be"),
    ("--epochs", "--epochs: expected one argument"),
    ("--remode stars", "--remode: invalid choice"),
    ("--inat-category flavour", "--inat-category: invalid choice"),
    ("--amp-dtype float64", "--amp-dtype: invalid choice"),
    ("--fusion-average median", "--fusion-average: invalid choice"),
    ("--fusion-keep 1.5", "--fusion-keep: must be 0 to 1"),
    ("--in-chans 2", "--in-chans: invalid choice: 2 (choose from 1, 3)"),
    ("--input-size 8 8 8", "--input-size: takes one number, or height and width"),
    ("--lr-noise 0.1 0.2 0.3", "--lr-noise: takes"),
    ("--lr-noise 0.5 0.1", "--lr-noise: must start before it ends"),
    ("--seed 4294967296", "--seed: must be 0 to 4294967295, not 4294967296"),
    ("--lr-noise 0.5 --lr-noise-pct 0", "--lr-noise-pct: must be 0 to 1"),
    # conflicts
    ("--batch-size 9 --mixup 0.8", "--batch-size: mixup and cutmix pair images"),
    ("--if_amp --no_amp", "not allowed with"),
    ("--cutmix-minmax 0.5 0.5", "--cutmix-minmax: MIN must be below MAX"),
    ("--cutmix-minmax 0.8 0.2", "--cutmix-minmax: MIN must be below MAX"),
    (
        "--epochs 2 --train-img-sizes 2 8 --cutmix-minmax 0 0.4",
        "--cutmix-minmax: no whole number of pixels is 0 to 0.4 of (2, 2)",
    ),
    ("--cutmix-minmax 0.5 0.6", "--cutmix-minmax: no whole number of pixels is 0.5 to 0.6 of (8, 8)"),
    ("--cooldown-epochs 2 --sched step", "--cooldown-epochs: is for cosine, tanh and poly"),
    ("--cooldown-epochs 2 --sched plateau", "--cooldown-epochs: is for cosine, tanh and poly"),
    ("--cooldown-epochs 2 --sched constant", "--cooldown-epochs: is for cosine, tanh and poly"),
    ("--sched-on-updates --sched plateau", "--sched-on-updates: --sched plateau goes by"),
    ("--eval", "--eval: needs the checkpoint to evaluate, --resume FILE, or --pretrained"),
    ("--real-labels x.json", "--real-labels: is for --eval"),
    ("--eval --resume x.pth --real-labels x.json --dist-eval", "--real-labels: needs all images in order"),
    ("--eval --resume x.pth --real-labels x.json --skip-bad-images", "--real-labels: needs all images in order"),
    ("--check --eval --resume x.pth", "--check: is about training"),
    ("--compile --scan-recompute", "--compile: can't follow --scan-recompute"),
    (
        "--compile --scan-backend reference",
        "--compile: needs the C++ scan of CPUs or Triton's of GPUs, and the scan here",
    ),
    ("--grad-checkpointing --scan-recompute", "--scan-recompute: is a part of what --grad-checkpointing does"),
    ("--smoothing 1", "--smoothing: of 1 leaves nothing to learn"),
    ("--compile --if_random_cls_token_position", "--compile: is for one order of tokens"),
    ("--bce-loss", "--bce-loss: takes every class above 0 for right, which is all of them with --smoothing 0.1"),
    ("--cosub --smoothing 1 --mixup 0 --cutmix 0", "--smoothing: of 1 leaves nothing to learn"),
    ("--if_random_token_rank --no-train-mode", "--if_random_token_rank: is a part of what --no-train-mode leaves out"),
    ("--distillation-type soft", "--distillation-type: needs the teacher"),
    ("--teacher-model resnet18 --teacher-path x.pth", "--teacher-model: has no effect without"),
    ("--cosub --drop-path 0", "--cosub: both sub-models are the same"),
    ("--cosub --no-train-mode", "--cosub: both sub-models are the same"),
    ("--cosub --distillation-type hard --teacher-model resnet18 --teacher-path x.pth", "--cosub: is another kind"),
    ("--distillation-type hard --teacher-model resnet81 --teacher-path x.pth", "did you mean resnet18"),
    ("--layer-decay 1.5", "--layer-decay: must be"),
    ("--config gone.yaml", "--config: gone.yaml: "),
    ("--finetune a.pth --resume b.pth", "--finetune: starts a new run"),
    ("--pretrained --finetune b.pth", "--pretrained: starts from published weights"),
    ("--pretrained --resume b.pth", "--pretrained: starts from published weights"),
    ("--finetune-ema", "--finetune-ema: has no effect without --finetune FILE or --pretrained"),
    ("--pretrained", "--pretrained: there are weights of vim_tiny_patch16_224, "),
    ("--finetune hf_hub:x.pth", "--finetune hf_hub:x.pth: must be hf_hub:OWNER/REPOSITORY/FILE"),
    ("--auto-resume --resume b.pth --output_dir out", "--auto-resume: finds the checkpoint itself"),
    ("--auto-resume --output_dir=", "--auto-resume: needs the run's --output_dir"),
    ("--save-steps 5 --output_dir=", "--save-steps: needs a place"),
    ("--log-wandb --output_dir=", "--log-wandb: sends what is logged in --output_dir"),
    ("--log-images 5 --output_dir=", "--log-images: needs a place"),
    ("--checkpoint-hist 3 --output_dir=", "--checkpoint-hist: needs a place"),
    ("--val-interval 0", "--val-interval: must be 1 or more, not 0"),
    # names
    ("--model vim_pico_patch2", "--model vim_pico_patch2: no such name, did you mean vim_pico_patch2_8"),
    ("--model vim_tiny", "--model vim_tiny: no such name, did you mean vim_tiny_patch16_224 or "),
    ("--model resnet18", "--model resnet18: no such name"),
    ("--opt adamv", "--opt adamv: no such name, did you mean"),
    ("--opt adahessian", "--opt adahessian: needs gradients of gradients"),
    ("--model-kwargs depth", "--model-kwargs: 'depth' is not KEY=VALUE"),
    ("--model-kwargs dept=3", "--model-kwargs dept: no such name, did you mean depth"),
    ("--model-kwargs img_size=16", "--model-kwargs img_size: is what --input-size gives"),
    ("--model-kwargs depth=0", "--model-kwargs depth=0: depth must be a whole number of at least 1, not 0"),
    ("--model-kwargs depth=2 embed_dim=1.5", "--model-kwargs depth=2 embed_dim=1.5: embed_dim must be a whole number"),
    ("--model-kwargs bidirectional=no", "bidirectional must be True or False, not 'no'"),
    ("--model-kwargs patch_size=0", "--model-kwargs patch_size=0: "),
    (
        "--model-kwargs d_conv=9 --scan-backend cpu",
        "d_conv=9: the convolution sees 2 to 4 tokens in C++, not 9: use the reference backend for that",
    ),
    ("--opt-kwargs amsgard=True", "--opt-kwargs amsgard: no such name, did you mean amsgrad"),
    ("--opt-kwargs lr=1", "--opt-kwargs lr: is what --lr gives"),
    ("--opt sgd --opt-kwargs nesterov=True dampening=0.5", "--opt sgd --opt-kwargs nesterov=True dampening=0.5: Nest"),
    ("--opt adamp --opt-kwargs wd_ratio=x", "--opt adamp --opt-kwargs wd_ratio=x: "),
    ("--opt-betas 0.9", "--opt adamw takes 2 betas, not 1"),
    ("--opt-betas 0.9 0.9 0.9", "--opt adamw takes 2 betas, not 3"),
    ("--opt sgd --opt-betas 0.9 0.9", "--opt sgd takes no betas, not 2"),
    ("--opt-betas 0.9 1.0", "--opt adamw: Invalid beta"),
    ("--device tpu", "--device tpu"),
    ("--world_size 2 --dist_url http://x", "--dist_url http://x: must be env:// or tcp://HOST:PORT"),
    ("--data-set DIGIT", "did you mean DIGITS"),
    ("--data-set CIFAR --data-path /nowhere", "cifar-100-python"),
    ("--data-set hfds/cifar10 --data-path .", "hfds/cifar10"),
    ("--data-set CIFAR --data-path=", "--data-set CIFAR needs --data-path"),
    # sizes and plans of the model
    ("--input-size 9", "image height 9"),
    ("--input-size 1000000", "--input-size 1000000 1000000: no model for such images can be made"),
    ("--input-size 9999999999999999999998", "--input-size 99"),
    ("--input-size 8 9", "image width 9"),
    ("--train-img-sizes", "--train-img-sizes: expected at least one argument"),
    ("--train-img-sizes 0 8", "--train-img-sizes: must be 1 or more, not 0"),
    ("--train-img-sizes 8 4", "--train-img-sizes: must grow from each size to the next"),
    ("--train-img-sizes 4 4 8", "--train-img-sizes: must grow from each size to the next"),
    ("--train-img-sizes 4 6 8 --epochs 2", "--train-img-sizes: has more sizes than --epochs 2"),
    ("--epochs 2 --train-img-sizes 4 10", "--train-img-sizes 10: is above --input-size 8"),
    ("--epochs 2 --train-img-sizes 5 8", "--train-img-sizes 5: image height 5 does not divide into patches of 2"),
    (
        "--epochs 2 --train-img-sizes 4 8 --input-size 8 10",
        "--train-img-sizes: are of square images, and --input-size is 8 10",
    ),
    (
        "--epochs 9 --train-img-sizes 2 4 6 8 10 12 14 16 18 --compile",
        "--compile: makes a graph for each of --train-img-sizes",
    ),
    (
        "--epochs 2 --train-img-sizes 4 8 --fusion-strategy all --fusion-token 1",
        "--train-img-sizes 4: layer 3 has 1 patch token and can fuse at most 0, not 1; the largest --fusion-token here",
    ),
    (
        "--epochs 2 --train-img-sizes 4 8 --fusion-plan 0,0,8,0,0,0",
        "--train-img-sizes 4: layer 2 has 4 patch tokens and can fuse at most 2, not 8; --fusion-clip fuses as many",
    ),
    (
        "--epochs 2 --train-img-sizes 4 8 --data-set wds/x --data-path .",
        "--data-set wds/x: is a stream, of which no single",
    ),
    ("--fusion-strategy uper --fusion-layer 1 --fusion-token 1", "did you mean upper"),
    ("--fusion-strategy upper --fusion-token 1", "needs --fusion-layer"),
    ("--fusion-strategy upper --fusion-layer 6 --fusion-token 1", "must be 0 to 5"),
    ("--fusion-strategy upper --fusion-layer -1 --fusion-token 1", "must be 0 to 5"),
    ("--fusion-layer 1", "--fusion-layer is for lower and upper"),
    ("--fusion-strategy all --fusion-token -1", "--fusion-token must be at least 0"),
    ("--fusion-strategy all --fusion-token 4", "layer 3 has 4 patch tokens and can fuse at most 2, not 4; "),
    ("--fusion-strategy all --fusion-token 4", "; --fusion-clip fuses as many as a layer can"),
    ("--fusion-strategy all --fusion-total 40", "; the largest --fusion-total here is 14"),
    ("--fusion-strategy all --fusion-cost 0.5", "--fusion-cost 0.5 is less than all can reach: 0.6647"),
    ("--fusion-strategy all", "without --fusion-token (tokens after each layer), --fusion-total (tokens in all), "),
    (
        "--fusion-strategy all",
        "--fusion-cost (share of the multiply-adds to leave); --fusion-plan, without a strategy, says all",
    ),
    ("--fusion-token 4", "--fusion-token 4 fuses nothing under --fusion-strategy no"),
    ("--fusion-plan 1,x,1,1,1,1", "--fusion-plan"),
    ("--fusion-plan 1,1", "--fusion-plan"),
    (f"{FUSE} --fusion-total 3", "exclude each other"),
    (f"{FUSE} --fusion-reduce prune --fusion-average size", "--fusion-average size has no effect"),
]


@pytest.fixture
def refuse(images, failing, tmp_path, monkeypatch):
    """Run main.py with something wrong; returns its one line. Nothing may have been written."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"

    def call(*flags, code=2):
        data = ["--data-set", "FOLDER", "--data-path", str(images), "--output_dir", str(out)]
        line = failing(main.main, [*data, *PLAIN, *map(str, flags)], code=code)
        assert line.startswith("main.py: error: ")
        assert len(line) < 700
        assert not [path for path in out.rglob("*") if path.is_file()] or code == 1
        assert not list(tmp_path.rglob("*.tmp"))
        assert not (tmp_path / "ran").exists()
        return line

    return call


@pytest.mark.parametrize(("flags", "complaint"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_flags(refuse, flags, complaint):
    assert complaint in refuse(*flags.split())


# Files: each function makes one in a folder and returns flags; its docstring is a part of what must be said.


def empty_folders(folder, images):
    """/train."""
    for split in ("train", "val"):
        (folder / split).mkdir()
    return "--data-path", folder


def a_folder_without_classes(folder, images):
    """/train."""
    for split in ("train", "val"):
        (folder / split).mkdir()
        shutil.copy(images / "train" / "dark" / "0.png", folder / split)
    return "--data-path", folder


def a_class_without_images(folder, images):
    """dim"""
    shutil.copytree(images, folder / "data")
    for split in ("train", "val"):
        (folder / "data" / split / "dim").mkdir()
    return "--data-path", folder / "data"


def classes_of_val_that_differ(folder, images):
    """data: classes in only one of train/ and val/: dark, dusk"""
    shutil.copytree(images, folder / "data")
    (folder / "data" / "val" / "dark").rename(folder / "data" / "val" / "dusk")
    return "--data-path", folder / "data"


def no_val(folder, images):
    """no folder"""
    shutil.copytree(images / "train", folder / "data" / "train")
    return "--data-path", folder / "data"


def a_file_as_data_path(folder, images):
    """--data-path must hold train/ and val/"""
    (folder / "file").write_text("")
    return "--data-path", folder / "file"


def fewer_classes_than_folders(folder, images):
    """--nb-classes 1: --data-set FOLDER has 2 classes"""
    return "--nb-classes", 1


def cifar_that_would_run_code(folder, images):
    """train: not a batch of CIFAR in Python's format (posix.system has no place"""
    for name in ("train", "test"):
        (folder / name).write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    return "--data-set", "CIFAR", "--data-path", folder


def an_idx_file_cut_short(folder, images):
    """train-images-idx3-ubyte"""
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 9)) + bytes(20))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 9)) + bytes(9))
    return "--data-set", "FMNIST", "--data-path", folder


def a_checkpoint_that_is_missing(folder, images):
    """--resume missing.pth: no such file"""
    return "--resume", "missing.pth"


def weights_to_start_from_that_are_missing(folder, images):
    """--finetune missing.pth: no such file"""
    return "--finetune", "missing.pth"


def a_checkpoint_cut_in_half(folder, images):
    """x.pth: not a checkpoint of tensors and plain data"""
    path = folder / "x.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "--resume", path


def text_as_a_checkpoint(folder, images):
    """x.pth: not a checkpoint of tensors and plain data"""
    (folder / "x.pth").write_text("hello")
    return "--resume", folder / "x.pth"


def a_folder_as_a_checkpoint(folder, images):
    """--resume ."""
    return "--resume", "."


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


def a_checkpoint_that_would_run_code(folder, images):
    """x.pth: not a checkpoint of tensors and plain data"""
    torch.save({"model": RunsCode()}, folder / "x.pth")
    return "--resume", folder / "x.pth"


def a_checkpoint_of_another_model(folder, images):
    """x.pth: its model: does not fit this model"""
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, folder / "x.pth")
    return "--resume", folder / "x.pth"


def a_checkpoint_of_weights_to_continue(folder, images):
    """x.pth: holds no model_ema, ema_steps"""
    model = new_model(main.parse_args(["--nb-classes", "2"]))
    model.reset_classifier(2)
    torch.save(model.state_dict(), folder / "x.pth")
    return "--resume", folder / "x.pth"


def only_a_broken_checkpoint_to_go_on_from(folder, images):
    """checkpoint.pth: not a checkpoint of tensors and plain data"""
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint.pth").write_bytes(b"PK")
    return "--auto-resume", "--output_dir", folder / "run"


def an_output_directory_inside_a_file(folder, images):
    """can't be written"""
    (folder / "file").write_text("")
    return "--output_dir", folder / "file" / "out"


def an_output_directory_that_the_system_forbids(folder, images):
    """--output_dir /proc/out: can't be written"""
    return "--output_dir", "/proc/out"


def an_output_directory_of_another_run(folder, images):
    """holds a run already"""
    (folder / "run").mkdir()
    (folder / "run" / "log.txt").write_text('{"epoch": 0}\n')
    return "--output_dir", folder / "run"


def a_log_of_something_else(folder, images):
    """log.txt: line 1 is not an epoch of a run"""
    (folder / "run").mkdir()
    (folder / "run" / "log.txt").write_text("nothing\nhere\n")
    return "--output_dir", folder / "run"


def a_log_that_is_not_text(folder, images):
    """log.txt: line 1 is not an epoch of a run"""
    (folder / "run").mkdir()
    (folder / "run" / "log.txt").write_bytes(bytes(range(256)))
    return "--output_dir", folder / "run"


FILES = [
    empty_folders,
    a_folder_without_classes,
    a_class_without_images,
    classes_of_val_that_differ,
    no_val,
    a_file_as_data_path,
    fewer_classes_than_folders,
    cifar_that_would_run_code,
    an_idx_file_cut_short,
    a_checkpoint_that_is_missing,
    weights_to_start_from_that_are_missing,
    a_checkpoint_cut_in_half,
    text_as_a_checkpoint,
    a_folder_as_a_checkpoint,
    a_checkpoint_that_would_run_code,
    a_checkpoint_of_another_model,
    a_checkpoint_of_weights_to_continue,
    only_a_broken_checkpoint_to_go_on_from,
    an_output_directory_inside_a_file,
    an_output_directory_that_the_system_forbids,
    an_output_directory_of_another_run,
    a_log_of_something_else,
    a_log_that_is_not_text,
]


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_files(refuse, tmp_path, images, make):
    assert make.__doc__ in refuse(*make(tmp_path, images))


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


def text(path):
    path.write_text("no image")


def cut_jpeg(path):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("harm", [cut, text, cut_jpeg, Path.unlink])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_in_the_middle_of_an_epoch(refuse, images, tmp_path, harm, workers):
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data" / "train" / "dark" / "3.png"
    if harm is Path.unlink:  # as it vanishes while training runs
        path.unlink()
        path.symlink_to(tmp_path / "gone")
    else:
        harm(path)
    line = refuse("--data-path", tmp_path / "data", "--num_workers", workers, code=1)
    assert str(path) in line or str(tmp_path / "gone") in line


def test_an_evaluation_that_fails_keeps_the_trained_epoch(refuse, images, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "data")
    good = next((tmp_path / "data" / "val" / "dark").iterdir())
    content = good.read_bytes()
    good.write_text("no image")
    run = tmp_path / "run"
    flags = ("--data-path", tmp_path / "data", "--num_workers", 0, "--output_dir", run)
    assert str(good) in refuse(*flags, code=1)
    good.write_bytes(content)
    steps = []
    monkeypatch.setattr(TrainingState, "set_rate", lambda state: steps.append(state.sums.steps))
    main.main(["--data-set", "FOLDER", *PLAIN, "--auto-resume", *map(str, flags)])
    assert len(steps) == 1  # when the epoch starts, and after no step
    assert [record["epoch"] for record in map(json.loads, (run / "log.txt").read_text().splitlines())] == [0]


def test_an_epoch_that_can_not_be_kept_hides_no_reason(monkeypatch, tmp_path):
    def full(state, output_dir):
        raise OSError("disk full")

    monkeypatch.setattr(runner, "save", full)
    with pytest.raises(OSError, match="a broken image"), runner.keeping_the_epoch(None, tmp_path):
        raise OSError("a broken image")


def test_an_image_of_one_pixel_is_an_image(images, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    Image.new("RGB", (1, 1)).save(tmp_path / "data" / "train" / "dark" / "3.png")
    main.main(["--data-set", "FOLDER", "--data-path", str(tmp_path / "data"), "--epochs", "1", "--num_workers", "0"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--device cuda", "--device cuda: PyTorch finds no CUDA GPU"),
        ("--opt bnbadamw8bit", "--opt bnbadamw8bit: CUDA required"),
        ("--opt fusedlamb", "--opt fusedlamb: CUDA required"),
    ],
)
def test_what_needs_a_gpu(refuse, flags, complaint):
    assert complaint in refuse(*flags.split())


def test_wrong_flags_are_said_before_pytorch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "main.py", "--epochs", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "main.py: error: argument --epochs: must be 1 or more, not 0 (see --help)\n"


def test_a_port_in_use_ends_all_processes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "main.py", "--world_size", "2", "--dist_url", url, "--output_dir", tmp_path / "out"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert "address already in use" in result.stderr.lower()
    assert not (tmp_path / "out").exists()


def test_another_runs_log_stays_as_it_was(refuse, tmp_path):
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "log.txt"
    log.write_text(json.dumps({"epoch": 0}) + "\n")
    refuse("--output_dir", tmp_path / "run")
    assert log.read_text() == '{"epoch": 0}\n'
