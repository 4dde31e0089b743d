"""Recipes of fusion: what they set, that flags go before them, and that each fuses as its screen says."""

import re

import pytest
import yaml

import fusion
import main
from training.settings.command_line import get_args_parser, parse_args
from training.settings.model import FUSION_RECIPES
from training.settings.over_run import parse_over

RECIPES = ("famba-v", "mtr", "r-meeto", "tome", "top-vim")


def fusing(command, run=None):
    """The settings of fusion that are not the defaults."""
    args = parse_args(command.split()) if run is None else parse_over(get_args_parser(), command.split(), run)
    defaults = vars(parse_args([]))
    return {
        name.removeprefix("fusion_"): value
        for name, value in vars(args).items()
        if name.startswith("fusion_") and value != defaults[name] and name != "fusion_recipe"
    }


def test_the_recipes():
    assert tuple(sorted(file.stem for file in FUSION_RECIPES.iterdir())) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_all_and_gives_its_source(name):
    """Every choice of the method, so that nothing is left of a run's own; where to fuse; one amount."""
    text = (FUSION_RECIPES / f"{name}.yaml").read_text()
    said = yaml.load(text, yaml.BaseLoader)
    assert set(said) == {"fusion-strategy", "fusion-cost", *(f"fusion-{choice}" for choice in fusion.CHOICES)}
    fusion.Method(**{choice: said[f"fusion-{choice}"] for choice in fusion.CHOICES})
    assert re.search(r"^# .*\(.*arXiv \d{4}\.\d{5}", text)


def test_what_the_recipes_set():
    amount = {"strategy": "all", "cost": 0.8}
    assert fusing("--fusion-recipe famba-v") == {"strategy": "interleaved", "cost": 0.8}
    assert fusing("--fusion-recipe tome") == amount | {"average": "size", "metric": "B", "order": "concat"}
    assert fusing("--fusion-recipe r-meeto") == amount | {"average": "size"}
    assert fusing("--fusion-recipe mtr") == amount | {"score": "delta", "match": "lowest"}
    assert fusing("--fusion-recipe top-vim") == amount | {"reduce": "prune", "score": "scan", "match": "lowest"}


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("--fusion-order keep", {"strategy": "all", "cost": 0.8, "average": "size", "metric": "B"}),
        ("--fusion-token 2", {"strategy": "all", "token": 2, "average": "size", "metric": "B", "order": "concat"}),
        (
            "--fusion-strategy upper --fusion-layer 2",
            {"strategy": "upper", "layer": 2, "cost": 0.8, "average": "size", "metric": "B", "order": "concat"},
        ),
        ("--fusion-plan 0,2,0", {"plan": "0,2,0", "average": "size", "metric": "B", "order": "concat"}),
        (
            "--fusion-reduce prune",
            {"strategy": "all", "cost": 0.8, "metric": "B", "order": "concat", "reduce": "prune"},
        ),
        ("--fusion-strategy no", {}),
    ],
)
def test_flags_go_before_a_recipe(flags, found):
    assert fusing(f"{flags} --fusion-recipe tome") == found


def test_a_recipe_goes_before_the_fusion_of_a_run():
    run = vars(parse_args("--fusion-strategy all --fusion-token 2 --fusion-metric input --fusion-average size".split()))
    assert fusing("--fusion-recipe mtr", run) == fusing("--fusion-recipe mtr")
    assert fusing("--fusion-recipe mtr --fusion-token 1", run)["token"] == 1
    assert fusing("", vars(parse_args(["--fusion-recipe", "mtr"]))) == fusing("--fusion-recipe mtr")


def test_a_config_may_name_a_recipe(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("fusion-recipe: top-vim\nfusion-keep: 0.5\n")
    found = {"strategy": "all", "keep": 0.5, "reduce": "prune", "score": "scan", "match": "lowest"}
    assert fusing(f"--config {config}") == found
    assert fusing(f"--config {config} --fusion-recipe r-meeto") == {"strategy": "all", "keep": 0.5, "average": "size"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prints_its_plan_and_changes_what_a_model_says(trained, capsys, name):
    said = []
    for recipe in ([], ["--fusion-recipe", name]):
        main.main(["--eval", "--resume", str(trained / "checkpoint.pth"), "--num_workers", "0", *recipe])
        said.append(capsys.readouterr().out)
    strategy = "interleaved" if name == "famba-v" else "all"
    assert re.search(rf"^fusion     recipe {name}, {strategy}, \d+ tokens in all.*\n {{11}}17 \d", said[1], re.M)
    assert re.search(r", forward, 0\.(79|80)\d of those without fusion", said[1])
    before, after = (re.search(r"top-1 .* loss (\S+),", out).group(1) for out in said)
    assert before != after
