"""Recipes: what they set, what goes before them, what the screen says of them, and that a first run learns."""

import json

import pytest

import main
from training.records.runs import read_log
from training.settings.command_line import RECIPES, get_args_parser, parse_args

SHORT = {
    "batch_size": 32,
    "lr": 3e-3,
    "unscale_lr": True,
    "sched_on_updates": True,
    "warmup_epochs": 0,
    "drop_path": 0,
    "weight_decay": 0.1,
    "aa": "none",
    "reprob": 0,
    "mixup": 0,
    "cutmix": 0,
    "repeated_aug": False,
    "model_ema": False,
}


def changed(args):
    """Settings that are not the defaults."""
    defaults = vars(parse_args([]))
    return {name: value for name, value in vars(args).items() if value != defaults[name] and name != "recipe"}


def test_deit_is_the_defaults():
    assert changed(parse_args(["--recipe", "deit"])) == {}


def test_short():
    assert changed(parse_args(["--recipe", "short"])) == SHORT
    assert not parse_args(["--recipe", "short"]).mixed


@pytest.mark.parametrize("path", list(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_choice_and_changes_something(path):
    assert changed(parse_args(["--recipe", path.stem]))


def test_flags_go_before_a_recipe():
    args = parse_args("--lr 1e-4 --recipe short --model-ema --no-sched-on-updates --mixup 0.2".split())
    assert (args.lr, args.model_ema, args.sched_on_updates, args.mixup) == (1e-4, True, False, 0.2)
    assert (args.batch_size, args.cutmix, args.mixed) == (32, 0, True)


def test_a_config_goes_before_a_recipe_and_may_name_it(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("recipe: short\nlr: 1e-4\nrepeated-aug: true\n")
    args = parse_args(["--config", str(config), "--warmup-epochs", "2"])
    assert (args.recipe, args.lr, args.repeated_aug, args.warmup_epochs) == ("short", 1e-4, True, 2)
    assert args.batch_size == 32
    assert parse_args(["--config", str(config), "--recipe", "deit"]).batch_size == 64


def test_what_a_recipe_switches_on_can_be_switched_off(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: short\nunscale-lr: false\nsched-on-updates: false\n")
    for argv in (["--config", str(path)], ["--recipe", "short", "--no-unscale-lr", "--no-sched-on-updates"]):
        args = parse_args(argv)
        assert (args.unscale_lr, args.sched_on_updates) == (False, False)


def test_an_unknown_recipe_is_one_line(failing):
    line = failing(parse_args, ["--recipe", "shirt"])
    assert "--recipe" in line
    assert "short" in line


def test_rates_that_would_rise_are_one_line(failing):
    """From the start of the warm-up to the largest rate, and from that to the end."""
    for flags in ("--min-lr 1e-3", "--min-lr 1e-3 --sched plateau", "--warmup-lr 1e-3"):
        assert f"argument {flags.split()[0]}: 0.001 is above --lr 0.0005" in failing(parse_args, flags.split())
    for flags in ("--min-lr 1e-3 --sched step", "--warmup-lr 1e-3 --warmup-epochs 0", "--min-lr 5e-4"):
        parse_args(flags.split())


def test_the_screen_and_the_records_name_the_recipe(images, tmp_path, capsys):
    data = ["--data-set", "FOLDER", "--data-path", str(images), "--num_workers", "0", "--epochs", "1"]
    main.main([*data, "--recipe", "short", "--output_dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "recipe     short, as in recipes/short.yaml" in out
    assert "learning rate 0.003, cosine to 1e-05, 1 epoch" in out
    assert json.loads((tmp_path / "args.json").read_text())["recipe"] == "short"
    main.main([*data, "--batch-size", "16"])
    out = capsys.readouterr().out
    assert "recipe     deit, the flags' defaults, which wants about 300 epochs: --recipe short is for few" in out
    assert "cosine to 3.125e-07" in out


def test_a_first_run_learns(tmp_path):
    """The tiny model on the digits, ten classes, in three epochs of a second."""
    main.main(["--recipe", "short", "--epochs", "3", "--num_workers", "0", "--output_dir", str(tmp_path)])
    assert read_log(tmp_path / "log.txt")[-1]["test_acc1"] > 60


def test_help_names_the_recipes(capsys):
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--help"])
    assert "--recipe {deit,short}" in capsys.readouterr().out
