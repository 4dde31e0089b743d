"""Flags without use: set aside and noted, or an error where something was forgotten."""

from dataclasses import asdict, replace

import pytest

from training.settings.command_line import get_args_parser, parse_args
from training.settings.over_run import parse_over
from training.settings.unused import PUBLISHED

ALL = "--fusion-strategy all --fusion-token 2"


@pytest.mark.parametrize(
    ("used", "unused", "strategy"),
    [
        (ALL, [], "all"),
        (ALL, ["--fusion-layer 5"], "all"),
        (ALL, ["--fusion-layer 0"], "all"),
        ("--fusion-strategy alternate --fusion-token 2", ["--fusion-layer 5"], "alternate"),
        ("--fusion-strategy interleaved --fusion-total 9 --fusion-average size", ["--fusion-layer 5"], "interleaved"),
        ("--fusion-strategy no", [], "no"),
        (
            "--fusion-strategy no",
            ["--fusion-layer 5", "--fusion-token 8", "--fusion-schedule increasing", "--fusion-clip"],
            "no",
        ),
        ("--fusion-strategy no", ["--fusion-keep 0.5", "--fusion-average size", "--fusion-match random"], "no"),
        ("--fusion-strategy upper --fusion-layer 5 --fusion-token 8 --fusion-average size", [], "upper"),
        ("--fusion-strategy lower --fusion-layer 5 --fusion-token 8 --fusion-clip", [], "lower"),
    ],
)
def test_what_is_not_used_is_noted_and_set_aside(used, unused, strategy):
    """In either order; what is left are the settings of the command line without it."""
    for flags in ([used, *unused], [*unused, used]):
        settings = parse_args(" ".join(flags).split())
        assert settings.notes == tuple(f"{flag} is not used by {strategy}" for flag in unused)
        assert replace(settings, notes=()) == parse_args(used.split())


@pytest.mark.parametrize(
    "flags", ["--fusion-token 8", "--fusion-layer 5", "--fusion-order concat", "--fusion-keep 0.5"]
)
def test_a_forgotten_strategy_leaves_its_flags_for_an_error(flags):
    """Not fusing would be no answer to somebody who says how many tokens to fuse."""
    settings = parse_args(flags.split())
    assert settings.notes == ()
    name, value = flags.removeprefix("--").replace("-", "_").split()
    assert str(getattr(settings, name)) == value


@pytest.mark.parametrize(
    ("run", "command", "layer", "notes"),
    [
        ("--fusion-strategy upper --fusion-layer 3 --fusion-token 2", "--fusion-layer 4", 4, ()),
        ("--fusion-strategy upper --fusion-layer 3 --fusion-token 2", ALL, None, ()),
        (ALL, "--fusion-layer 4", None, ("--fusion-layer 4 is not used by all",)),
        (ALL, "--fusion-strategy no --fusion-token 4", None, ("--fusion-token 4 is not used by no",)),
        ("--fusion-plan 0,2", "--fusion-order concat", None, ()),
    ],
)
def test_over_a_run(run, command, layer, notes):
    """What the run fuses by decides what is of use; the run's own flags are not noted."""
    settings = parse_over(get_args_parser(), command.split(), asdict(parse_args(run.split())))
    assert (settings.fusion_layer, settings.notes) == (layer, notes)


def test_a_config_may_hold_flags_for_several_strategies(tmp_path):
    (tmp_path / "run.yaml").write_text("fusion-layer: 4\nfusion-token: 2\nvisualize: true\n")
    for strategy, layer in (("all", None), ("upper", 4)):
        settings = parse_args(["--config", str(tmp_path / "run.yaml"), "--fusion-strategy", strategy])
        assert (settings.fusion_layer, settings.fusion_token) == (layer, 2)
        assert ("--fusion-layer 4 is not used by all" in settings.notes) == (strategy == "all")
    settings = parse_args(["--config", str(tmp_path / "run.yaml"), "--fusion-strategy", "no"])
    assert (settings.fusion_layer, settings.fusion_token, len(settings.notes)) == (None, 0, 3)


@pytest.mark.parametrize("flag", PUBLISHED)
@pytest.mark.parametrize("value", [[], ["1"]])
def test_published_flags_are_accepted_with_or_without_a_value(flag, value, capsys):
    settings = parse_args([flag.replace("-", "_").replace("__", "--", 1), *value, "--epochs", "3"])
    assert settings.notes == (f"{flag} {PUBLISHED[flag].told}",)
    assert settings.epochs == 3
    changed = {name for name, value in asdict(settings).items() if value != asdict(parse_args([]))[name]}
    assert changed - {"notes", "epochs"} == ({"train_only"} if flag == "--attn-only" else set())
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    assert f"{flag} " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ("--no_continue_inf", "--if_continue_inf"),
        ("--no_nan2num", "--if_nan2num"),
        ("--no_random_cls_token_position", "--if_random_cls_token_position"),
        ("--no_random_token_rank", "--if_random_token_rank"),
    ],
)
def test_the_last_of_on_and_off_counts(off, on, tmp_path):
    """As in the published parser; over a config too."""
    name = on.removeprefix("--")
    assert getattr(parse_args([off, on]), name)
    assert not getattr(parse_args([on, off]), name)
    (tmp_path / "run.yaml").write_text(f"{name}: true")
    assert not getattr(parse_args(["--config", str(tmp_path / "run.yaml"), off]), name)


def test_attention_is_the_mixer_here():
    assert parse_args(["--attn-only"]).train_only == "mixer"
    assert parse_args(["--attn-only", "--train-only", "head"]).train_only == "head"


def test_published_flags_are_not_proposed(capsys):
    for word in ("--visualise", "--bi-merges"):
        with pytest.raises(SystemExit):
            parse_args([word])
        line = capsys.readouterr().err
        assert f"unknown argument {word}" in line
        assert not any(f"{flag} " in f"{line} " for flag in PUBLISHED)
