"""--model-kwargs and --opt-kwargs: arguments without a flag of their own, of the model and of the optimizer."""

import json

import pytest
import torch

import main
import visualize
from training.build.model import build_model
from training.build.optimizer import build_optimizer
from training.settings.command_line import parse_args
from training.settings.kinds import keyword_arguments

PLAIN = "--no-aug --mixup 0 --cutmix 0 --no-model-ema --num_workers 0 --batch-size 8".split()
SMALL = ("--model-kwargs", "depth=2", "embed_dim=16", "class_token=front")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=3", 3),
        ("a=1e-3", 1e-3),
        ("a=(4, 4)", (4, 4)),
        ("a=None", None),
        ("a=False", False),
        ("a=front", "front"),
        ("a='3'", "3"),
        ("a=b=c", "b=c"),
        ("a=", ""),
        ("a={[]: 1}", "{[]: 1}"),
    ],
)
def test_values_are_read_as_timm_reads_them(word, value):
    assert keyword_arguments([word]) == {"a": value}


def test_the_last_of_equal_keys_counts():
    assert keyword_arguments(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}
    assert keyword_arguments(None) == {}


def test_arguments_reach_the_model():
    model = build_model(parse_args(SMALL))
    assert (len(model.layers), model.embed_dim, model.class_token) == (2, 16, "front")
    plain = build_model(parse_args([]))
    assert (len(plain.layers), plain.embed_dim, plain.class_token) == (6, 48, "middle")


def test_arguments_reach_the_optimizer():
    args = parse_args(["--opt-kwargs", "amsgrad=True", "fused=False"])
    optimizer = build_optimizer(args, build_model(args), 1e-3)
    assert all(group["amsgrad"] and not group["fused"] for group in optimizer.param_groups)
    args = parse_args(["--opt", "sgd", "--opt-kwargs", "nesterov=False", "dampening=0.5"])
    optimizer = build_optimizer(args, build_model(args), 1e-3)
    assert {(group["nesterov"], group["dampening"]) for group in optimizer.param_groups} == {(False, 0.5)}


@pytest.mark.parametrize(
    "text",
    [
        "model-kwargs: depth=2",
        "model-kwargs: [depth=2, embed_dim=16]",
        "model-kwargs: {depth: 2, embed_dim: 16}",
        "model_kwargs:\n  depth: 2\n  patch_size: (4, 4)",
    ],
)
def test_a_file_of_flags_gives_them_as_words_or_as_a_table(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    args = parse_args(["--config", str(tmp_path / "run.yaml")])
    assert keyword_arguments(args.model_kwargs)["depth"] == 2
    assert len(build_model(args).layers) == 2


def test_a_table_inside_a_table_is_refused(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("opt-kwargs: {a: [1, 2]}")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml: opt-kwargs: is a value or a list of values" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """An epoch of a model with other arguments than its name gives."""
    folder = tmp_path_factory.mktemp("trained")
    data = ["--data-set", "FOLDER", "--data-path", str(images), "--output_dir", str(folder)]
    main.main([*PLAIN, *data, *SMALL, "--opt-kwargs", "amsgrad=True", "--epochs", "1"])
    return folder


def test_they_are_kept_and_programs_follow_them(trained, tmp_path, capsys):
    assert json.loads((trained / "args.json").read_text())["model_kwargs"] == [*SMALL[1:]]
    checkpoint = str(trained / "checkpoint.pth")
    main.main(["--eval", "--resume", checkpoint, "--num_workers", "0"])
    assert "17 17 17\n" in capsys.readouterr().out
    visualize.main(["--resume", checkpoint, "--index", "0", "--layers", "1", "--output_dir", str(tmp_path)])
    assert list(tmp_path.glob("*.png"))
    main.main(["--config", str(trained / "args.json"), "--output_dir", "", "--epochs", "1"])
    assert "17 17 17\n" in capsys.readouterr().out


def test_another_model_says_which_it_was(trained, images, failing):
    data = ("--data-set", "FOLDER", "--data-path", str(images))
    flags = (*PLAIN, *data, "--output_dir", str(trained), "--auto-resume", "--epochs", "2")
    line = failing(main.main, flags)
    assert "is of --model vim_pico_patch2_8 --model-kwargs depth=2 embed_dim=16 class_token=front; its model" in line
    line = failing(main.main, [*flags, *SMALL[:-1], "class_token=middle"])  # of the same shapes
    assert "--model-kwargs was ['depth=2', 'embed_dim=16', 'class_token=front'] and is" in line
    assert "--opt-kwargs was ['amsgrad=True'] and is None" in line


def test_all_that_amsgrad_keeps_is_resumed(trained, images, tmp_path):
    flags = [*PLAIN, *SMALL, "--data-set", "FOLDER", "--data-path", str(images), "--epochs", "2"]
    whole = [*flags, "--opt-kwargs", "amsgrad=True", "--output_dir", str(tmp_path)]
    main.main([*whole, "--resume", str(trained / "checkpoint.pth")])
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert all("max_exp_avg_sq" in state for state in saved["optimizer"]["state"].values())


def test_a_model_without_logits_is_refused_before_training(images, failing):
    data = ("--data-set", "FOLDER", "--data-path", str(images))
    line = failing(main.main, [*PLAIN, *data, "--model-kwargs", "depth=2", "global_pool="])
    assert "--model-kwargs depth=2 global_pool=: the model's output, of shape (1, 17, 2), is no row of logits" in line
