"""What tests of several rooms share: the golden data and the models that produced it."""

from functools import partial
from pathlib import Path

from tests.hiding import hide

hide()  # before anything is imported that looks for its caches and settings when it is

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch._dynamo.utils import counters

import main
import models_mamba
from ssm import cpu
from training.records.runs import read_log
from training.runtime.randomness import seed_all

GOLDEN = Path(__file__).parent / "golden"
cpu.unavailable()  # compiles the scan, where it has to, before tests and their processes start


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Processes that keep quiet about an error wait for the one that speaks; here they are alone."""
    monkeypatch.setattr("training.settings.failure.SECONDS_TO_SPEAK", 0)


@pytest.fixture
def failing(capsys):
    """Call what must end the program with an exit status; returns the one line that it writes to stderr."""

    def call(function, *args, code=2, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            function(*args, **kwargs)
        assert exit_.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


@pytest.fixture
def error(run, failing):
    """Call a module's fixture `run` with something wrong; returns the one line of the error."""
    return partial(failing, run)


@pytest.fixture
def without_inductor(monkeypatch):
    """Compile without the last stage, which writes C++ and takes minutes; returns the arguments of torch.compile."""
    compile_, asked = torch.compile, []

    def compile_to_graphs(model, **kwargs):
        asked.append(kwargs)
        return compile_(model, backend="aot_eager", **kwargs)

    monkeypatch.setattr(torch, "compile", compile_to_graphs)
    torch._dynamo.reset()
    counters.clear()
    return asked


@pytest.fixture
def trains_alike_compiled(without_inductor, run, tmp_path):
    """Train by a module's fixture `run` with these flags, compiled and not: same losses, so many graphs, no break."""

    def call(*flags, graphs):
        for name, chosen in (("plain", ()), ("compiled", ("--compile",))):
            run(*flags, *chosen, "--output_dir", tmp_path / name)
        plain, compiled = (read_log(tmp_path / name / "log.txt") for name in ("plain", "compiled"))
        for column in ("train_loss", "test_loss", "test_ema_loss"):
            expected = [line[column] for line in plain]
            assert [line[column] for line in compiled] == pytest.approx(expected, rel=1e-4)
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]

    return call


@pytest.fixture(scope="session")
def load_golden():
    """Read one golden file by name, every time afresh."""
    return lambda name: torch.load(GOLDEN / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="session")
def golden_model():
    """Build the model that a golden file describes, with its weights."""

    def build(golden: dict) -> models_mamba.VisionMamba:
        config = golden["config"]
        class_token = "none"
        if config["if_cls_token"]:
            class_token = "middle" if config["use_middle_cls_token"] else "front"
            class_token = "double" if config["use_double_cls_token"] else class_token
        pool = None
        if class_token == "none":
            pool = {"none": "last", "mean": "avg"}[config["final_pool_type"]]
        model = models_mamba.VisionMamba(
            **{key: config[key] for key in ("patch_size", "stride", "depth", "embed_dim", "d_state", "num_classes")},
            img_size=tuple(config["img_size"]) if isinstance(config["img_size"], list) else config["img_size"],
            in_chans=config["channels"],
            class_token=class_token,
            global_pool=pool,
            bidirectional=config["bimamba_type"] == "v2",
            drop_path_rate=config["drop_path_rate"],
        )
        model.load_state_dict(models_mamba.checkpoint_filter_fn(golden["state_dict"], model))
        return model.train(golden["mode"] == "train")

    return build


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; absolute where all expected values are zero."""
    scale = expected.abs().max().item() or 1.0
    return ((actual.to(expected.dtype) - expected).abs().max() / scale).item()


@pytest.fixture(scope="session")
def assert_close():
    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = "") -> None:
        assert actual.shape == expected.shape, name
        assert relative_error(actual, expected) <= tolerance, name

    return check


@pytest.fixture
def seeded():
    """Python's, NumPy's and PyTorch's generators as at the start of every other such test."""
    seed_all(0)


@pytest.fixture(scope="session")
def pixels():
    """Undo ImageNet's normalisation of an image: uint8 [H, W, 3]."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return lambda image: ((image * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """16 training and 6 test images of 8x8 pixels, two classes: dark and bright."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, low in (("bright", 128), ("dark", 0)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """The output directory of one epoch on the small folder, upper layers fusing."""
    output = tmp_path_factory.mktemp("trained")
    flags = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8 --epochs 1"
    fusion = "--fusion-strategy upper --fusion-layer 3 --fusion-token 2"
    data = ["--data-set", "FOLDER", "--data-path", str(images), "--output_dir", str(output)]
    main.main([*flags.split(), *fusion.split(), *data])
    return output
