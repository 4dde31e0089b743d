"""Weights that a model starts from."""

from dataclasses import replace

import pytest
import torch

from training.build.model import build_model
from training.build.weights import Start, restore, start_from, start_of
from training.settings.command_line import parse_args

TINY = "--model vim_pico_patch2_8"


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of a small model for 3 classes, and that model."""
    torch.manual_seed(1)
    model = build_model(parse_args(TINY.split()), num_classes=3)
    torch.save({"model": model.state_dict(), "grid_size": (4, 4)}, tmp_path / "weights.pth")
    return model, str(tmp_path / "weights.pth")


def test_starting_from_weights(weights):
    source, path = weights
    model = build_model(parse_args(TINY.split()), num_classes=3)
    assert start_from(model, Start(path)) == path
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_starting_with_another_head(weights):
    source, path = weights
    model = build_model(parse_args(TINY.split()), num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_from(model, Start(path)) == f"{path}, with a new head for 5 classes"
    for name, value in model.state_dict().items():
        expected = before if name.startswith("head.") else source.state_dict()
        assert torch.equal(value, expected[name]), name


def test_starting_at_another_size_keeps_the_class_token_at_its_row(weights):
    source, path = weights
    model = build_model(parse_args([*TINY.split(), "--input-size", "12"]), num_classes=3)
    start_from(model, Start(path))
    assert model.pos_embed.shape == (1, 37, 48)
    assert torch.equal(model.pos_embed[:, 18], source.pos_embed[:, 8])


def test_a_grey_image_weighs_what_its_three_equal_channels_did(weights):
    source, path = weights
    model = build_model(parse_args([*TINY.split(), "--in-chans", "1"]), num_classes=3)
    start_from(model, Start(path))
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)))


def test_starting_from_a_published_file(load_golden, golden_model, tmp_path):
    golden = load_golden("vim_v2_midcls_p8")
    torch.save({"model": golden["state_dict"]}, tmp_path / "published.pth")
    model = golden_model(golden)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_classifier(3)
    torch.nn.init.zeros_(model.pos_embed)
    told = start_from(model, Start(str(tmp_path / "published.pth")))
    assert "new head for 3 classes" in told
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, expected[name]), name


def test_starting_from_the_average(weights, tmp_path):
    """Of a file of ours, where each class has its row of the head too."""
    source, _ = weights
    average = {name: value + 1 for name, value in source.state_dict().items()}
    saved = {"model": source.state_dict(), "model_ema": average, "grid_size": (4, 4), "classes": ["a", "b", "c"]}
    torch.save(saved, tmp_path / "ours.pth")
    model = build_model(parse_args(TINY.split()), num_classes=2)
    start = Start(str(tmp_path / "ours.pth"), "model_ema")
    assert start_from(model, start, ["c", "a"]) == f"{tmp_path}/ours.pth, its model_ema"
    assert torch.equal(model.pos_embed, average["pos_embed"])
    assert torch.equal(model.head.weight, average["head.weight"][[2, 0]])


TINY_FILE = "hf_hub:hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"
BASE_FILE = "hf_hub:hustvl/Vim-base-midclstok/vim_b_midclstok_81p9acc.pth"


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        ("", None),
        ("--finetune a.pth", Start("a.pth")),
        ("--finetune a.pth --finetune-ema", Start("a.pth", "model_ema")),
        ("--model vim_tiny_patch16_224 --pretrained", Start(TINY_FILE, flag="--pretrained")),
        ("--model vim_base_patch16_224 --pretrained", Start(BASE_FILE, "model_ema", "--pretrained")),
        (f"--model vim_base_patch16_224 --finetune {BASE_FILE}", Start(BASE_FILE)),
    ],
)
def test_what_flags_start_from(flags, start):
    """The base model's published figure is that of the average; --finetune takes the weights themselves."""
    assert start_of(parse_args(flags.split())) == start


def test_starting_from_what_does_not_fit(weights):
    _, path = weights
    args = parse_args("--model vim_nano_patch4_32".split())
    with pytest.raises(ValueError, match=r"--finetune .*weights.pth: does not fit this model"):
        start_from(build_model(args, num_classes=3), Start(path))
    with pytest.raises(ValueError, match="--finetune /nowhere: no such file"):
        start_from(build_model(args), Start("/nowhere"))


def test_restoring_needs_a_name(weights):
    _, path = weights
    args = parse_args(TINY.split())
    args = replace(args, resume=path, model=None)
    saved = torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="doesn't say which model it is; name it with --model"):
        restore(args, saved)
    model = restore(replace(args, model="vim_pico_patch2_8"), saved)
    assert model.num_classes == 3
    assert not model.training
