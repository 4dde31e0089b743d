"""From flags to a model: plans, methods, weights from elsewhere."""

import pytest
import torch

import fusion
from training.build import model as models
from training.settings.command_line import parse_args

TINY = "--model vim_pico_patch2_8"


def plan_of(flags):
    return models.fusion_plan(parse_args(flags.split()), 6, 16)


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        ("", (0, 0, 0, 0, 0, 0)),
        ("--fusion-strategy all --fusion-token 2", (2, 2, 2, 2, 2, 2)),
        ("--fusion-strategy upper --fusion-layer 3 --fusion-total 8", (0, 0, 0, 3, 2, 3)),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-keep 0.5", (4, 4, 0, 0, 0, 0)),
        ("--fusion-strategy all --fusion-token 1 --fusion-schedule decreasing", (2, 2, 1, 1, 0, 0)),
        ("--fusion-strategy all --fusion-token 1 --fusion-schedule increasing", (0, 0, 1, 1, 2, 2)),
        ("--fusion-plan 0,0,8,0,3,1", (0, 0, 8, 0, 3, 1)),
    ],
)
def test_flags_make_the_plan(flags, plan):
    assert plan_of(flags) == plan


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fusion-strategy all --fusion-token 2 --fusion-total 8", "--fusion-token and --fusion-total exclude"),
        ("--fusion-strategy all --fusion-keep 0.5 --fusion-total 8", "--fusion-total and --fusion-keep exclude"),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-token 2", "--fusion-plan says all"),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-strategy all", "--fusion-plan says all"),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-layer 2", "--fusion-plan says all"),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-schedule increasing", "--fusion-plan says all"),
        ("--fusion-plan 0,0,8", "--fusion-plan has 3 numbers, the model 6 layers"),
        ("--fusion-keep 0.5", "--fusion-keep 0.5 fuses nothing under --fusion-strategy no"),
        ("--fusion-strategy all --fusion-keep 1", "--fusion-keep 1 fuses nothing of 16 patches"),
    ],
)
def test_flags_that_contradict(flags, message):
    with pytest.raises(ValueError, match=message):
        plan_of(flags)


@pytest.mark.parametrize(("name", "choice"), [(n, c) for n, choices in fusion.CHOICES.items() for c in choices[1:]])
def test_each_method_flag_reaches_the_layers(name, choice):
    args = parse_args(f"{TINY} --fusion-plan 0,2,0,0,0,0 --fusion-{name} {choice}".split())
    model = models.build_model(args)
    models.fuse(model, args)
    assert model.layers[1].fusion.method == fusion.Method(**{name: choice})


def test_a_method_flag_without_fusion_is_refused():
    args = parse_args(["--fusion-metric", "residual"])
    with pytest.raises(ValueError, match="--fusion-metric residual has no effect: no tokens fuse"):
        models.fuse(models.build_model(args), args)


@pytest.mark.parametrize(
    ("strategy", "amount", "largest"),
    [
        ("all", "--fusion-token 9", 2),
        ("all", "--fusion-total 15", 14),
        ("lower --fusion-layer 1", "--fusion-total 12", 8),
        ("all --fusion-schedule increasing", "--fusion-total 15", 12),
        ("upper --fusion-layer 4", "--fusion-keep 0", 0.3125),
    ],
)
def test_an_amount_that_is_too_large_names_the_largest(strategy, amount, largest):
    """Which is one that works, and the next one does not."""
    flag = amount.split()[0]
    least = "least" if flag == "--fusion-keep" else "largest"

    def fuse_by(value):
        args = parse_args(f"{TINY} --fusion-strategy {strategy} {flag} {value}".split())
        return models.fuse(models.build_model(args), args)

    with pytest.raises(ValueError, match=rf"can fuse at most \d, not \d+; the {least} {flag} here is {largest}$"):
        fuse_by(amount.split()[1])
    fuse_by(largest)
    with pytest.raises(ValueError, match=flag):
        fuse_by(largest - 1 / 16 if flag == "--fusion-keep" else largest + 1)


def test_an_impossible_plan_names_the_layer():
    args = parse_args(["--fusion-plan", "8,5,0,0,0,0"])
    with pytest.raises(ValueError, match="layer 1 has 8 patch tokens and can fuse at most 4, not 5$"):
        models.fuse(models.build_model(args), args)


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of a small model for 3 classes, and that model."""
    torch.manual_seed(1)
    model = models.build_model(parse_args(TINY.split()), num_classes=3)
    torch.save({"model": model.state_dict(), "grid_size": (4, 4)}, tmp_path / "weights.pth")
    return model, str(tmp_path / "weights.pth")


def test_starting_from_weights(weights):
    source, path = weights
    model = models.build_model(parse_args(TINY.split()), num_classes=3)
    assert models.start_from(model, path) == path
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_starting_with_another_head(weights):
    source, path = weights
    model = models.build_model(parse_args(TINY.split()), num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert models.start_from(model, path) == f"{path}, with a new head for 5 classes"
    for name, value in model.state_dict().items():
        expected = before if name.startswith("head.") else source.state_dict()
        assert torch.equal(value, expected[name]), name


def test_starting_at_another_size_keeps_the_class_token_at_its_row(weights):
    source, path = weights
    model = models.build_model(parse_args([*TINY.split(), "--input-size", "12"]), num_classes=3)
    models.start_from(model, path)
    assert model.pos_embed.shape == (1, 37, 48)
    assert torch.equal(model.pos_embed[:, 18], source.pos_embed[:, 8])


def test_a_grey_image_weighs_what_its_three_equal_channels_did(weights):
    source, path = weights
    model = models.build_model(parse_args([*TINY.split(), "--in-chans", "1"]), num_classes=3)
    models.start_from(model, path)
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)))


def test_starting_from_a_published_file(load_golden, golden_model, tmp_path):
    golden = load_golden("vim_v2_midcls_p8")
    torch.save({"model": golden["state_dict"]}, tmp_path / "published.pth")
    model = golden_model(golden)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_classifier(3)
    torch.nn.init.zeros_(model.pos_embed)
    told = models.start_from(model, str(tmp_path / "published.pth"))
    assert "new head for 3 classes" in told
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, expected[name]), name


def test_starting_from_what_does_not_fit(weights):
    _, path = weights
    args = parse_args("--model vim_nano_patch4_32".split())
    with pytest.raises(ValueError, match=r"--finetune .*weights.pth: does not fit this model"):
        models.start_from(models.build_model(args, num_classes=3), path)
    with pytest.raises(ValueError, match="--finetune /nowhere: no such file"):
        models.start_from(models.build_model(args), "/nowhere")


def test_restoring_needs_a_name(weights):
    _, path = weights
    args = parse_args(TINY.split())
    args.resume, args.model = path, None
    saved = torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="doesn't say which model it is; name it with --model"):
        models.restore(args, saved)
    args.model = "vim_pico_patch2_8"
    model = models.restore(args, saved)
    assert model.num_classes == 3
    assert not model.training
