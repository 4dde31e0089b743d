"""What a checkpoint says of its run is of its kind, or refused by name."""

import pytest
import torch

from training.state import checkpoint
from training.state.entries import check_entries

WEIGHTS = {"weight": torch.arange(3.0)}
ENDLESS: list = []
ENDLESS.append(ENDLESS)
GOOD = {
    "epoch": 3,
    "sums": {"steps": 4, "loss": 0.5},
    "best_acc1": 12.5,
    "images": 16,
    "ema_steps": 9,
    "grid_size": (4, 4),
    "opt": "adamw",
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "optimizer_names": [["weight"], []],
    "scheduler": None,
    "scaler": {"scale": 2.0},
}
BAD = [
    *[("epoch", epoch) for epoch in (-5, 1.5, "x", None, True, 10**400)],
    *[("sums", sums) for sums in (None, [1], {"steps": -1}, {"steps": 1.5}, {"loss": float("nan")}, {"loss": "x"})],
    ("best_acc1", "x"),
    ("images", "x"),
    ("ema_steps", None),
    *[("grid_size", grid) for grid in (None, 4, (4,), (4, 0), (2.0, 2), "ab")],
    ("opt", 3),
    ("optimizer", [1]),
    ("optimizer", {"state": {0: {"exp_avg": torch.zeros(3).to_sparse()}}}),
    ("optimizer", {"state": {0: {"exp_avg": torch.zeros(3, device="meta")}}}),
    ("optimizer_names", ["weight"]),
    ("optimizer_names", [[1]]),
    ("scheduler", 1),
    ("scaler", "x"),
]


def test_what_training_writes_passes():
    check_entries(GOOD)
    check_entries({})


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_other_kinds_are_refused(name, value):
    with pytest.raises(ValueError, match=f"its {name} is not "):
        check_entries(GOOD | {name: value})


def quantized():
    return torch.quantize_per_tensor(torch.arange(3.0), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "weight",
    [torch.arange(3.0).to_sparse(), torch.arange(3.0, device="meta"), quantized()],
    ids=["sparse", "meta", "quantized"],
)
def test_weights_without_numbers_are_refused(tmp_path, weight):
    torch.save({"model": {"weight": weight}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: "):
        checkpoint.load(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("settings", [{"a": torch.zeros(2)}, {1: 2}, {"a": {"b": ENDLESS}}, {"a": 1j}])
def test_settings_are_plain(tmp_path, settings):
    torch.save({"model": WEIGHTS, "settings": settings}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: "):
        checkpoint.load(str(tmp_path / "x.pth"))


def test_numbers_of_another_kind_do_not_fit():
    model = torch.nn.Linear(2, 3)
    for dtype in (torch.int64, torch.complex64, torch.bool):
        weights = {"weight": torch.ones(3, 2, dtype=dtype), "bias": torch.ones(3)}
        with pytest.raises(ValueError, match="1 of another kind .first: weight torch"):
            checkpoint.check_fit(model, weights, "x.pth")
    checkpoint.check_fit(model, {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3)}, "x.pth")


def test_auto_resume_passes_over_a_checkpoint_of_other_kinds(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pth", {"model": WEIGHTS, "epoch": "x"})
    with pytest.raises(ValueError, match=r"--auto-resume .*checkpoint\.pth: its epoch is not"):
        checkpoint.newest(tmp_path)
    checkpoint.save(tmp_path / "best_checkpoint.pth", {"model": WEIGHTS, "epoch": 1})
    assert checkpoint.newest(tmp_path)[0] == str(tmp_path / "best_checkpoint.pth")
