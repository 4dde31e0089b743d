"""What tests of several rooms share: the golden data and the models that produced it."""

from pathlib import Path

import pytest
import torch

import models_mamba

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Processes that keep quiet about an error wait for the one that speaks; here they are alone."""
    monkeypatch.setattr("training.options.SECONDS_TO_SPEAK", 0)


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
