"""From flags to plans and methods, and into a model."""

import pytest

import fusion
from fusion.injection import injected_plan
from training.build.fusion import fuse, fusion_method, fusion_plan, token_counts
from training.build.model import build_model
from training.settings.command_line import parse_args

TINY = "--model vim_pico_patch2_8"


def plan_of(flags):
    args = parse_args([*TINY.split(), *flags.split()])
    return fusion_plan(args, build_model(args), fusion_method(args))


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        ("", (0, 0, 0, 0, 0, 0)),
        ("--fusion-strategy all --fusion-token 2", (2, 2, 2, 2, 2, 2)),
        ("--fusion-strategy upper --fusion-layer 3 --fusion-total 8", (0, 0, 0, 3, 2, 3)),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-keep 0.5", (4, 4, 0, 0, 0, 0)),
        ("--fusion-strategy all --fusion-token 1 --fusion-schedule decreasing", (2, 2, 1, 1, 0, 0)),
        ("--fusion-strategy all --fusion-token 1 --fusion-schedule increasing", (0, 0, 1, 1, 2, 2)),
        ("--fusion-strategy lower --fusion-layer 2 --fusion-cost 0.8", (2, 3, 0, 0, 0, 0)),
        ("--fusion-strategy all --fusion-cost 0.8 --fusion-schedule decreasing", (2, 1, 1, 1, 0, 0)),
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
        ("--fusion-strategy uper --fusion-token 1", r"unknown --fusion-strategy uper \(did you mean upper"),
        ("--fusion-strategy upper --fusion-token 1", "upper needs --fusion-layer, 0 to 5 for 6 layers"),
        ("--fusion-strategy all --fusion-token -1", "--fusion-token must be at least 0, not -1"),
        ("--fusion-strategy all --fusion-total 0", "fuses nothing without --fusion-token .* or --fusion-total"),
        (
            "--fusion-schedule increasing",
            "--fusion-schedule increasing has no effect if no layer fuses: leave it constant",
        ),
        ("--fusion-strategy all --fusion-keep 0.5 --fusion-cost 0.7", "--fusion-keep and --fusion-cost exclude"),
        ("--fusion-plan 0,0,8,0,3,1 --fusion-cost 0.7", "--fusion-plan says all"),
        ("--fusion-cost 0.7", "--fusion-cost 0.7 fuses nothing under --fusion-strategy no"),
        ("--fusion-strategy all --fusion-cost 0.2", "--fusion-cost 0.2 is less than all can reach: 0.6647"),
        ("--fusion-strategy all --fusion-cost 1", "--fusion-cost 1 fuses nothing; the largest that all leaves is 0.98"),
        ("--fusion-strategy upper --fusion-cost 0.9", "upper needs --fusion-layer"),
    ],
)
def test_flags_that_contradict(flags, message):
    with pytest.raises(ValueError, match=message):
        plan_of(flags)


@pytest.mark.parametrize(("name", "choice"), [(n, c) for n, choices in fusion.CHOICES.items() for c in choices[1:]])
def test_each_method_flag_reaches_the_layers(name, choice):
    needed = {"score": "scan"} if choice == "lowest" else {}
    words = " ".join(f"--fusion-{flag} {value}" for flag, value in {name: choice, **needed}.items())
    args = parse_args(f"{TINY} --fusion-plan 0,2,0,0,0,0 {words}".split())
    model = build_model(args)
    fuse(model, args)
    assert model.layers[1].fusion.method == fusion.Method(**{name: choice, **needed})


def test_choices_of_the_method_that_contradict():
    args = parse_args("--fusion-plan 0,2,0,0,0,0 --fusion-reduce prune --fusion-average size".split())
    with pytest.raises(ValueError, match="^--fusion-average size has no effect with --fusion-reduce prune"):
        fuse(build_model(args), args)


def test_a_method_flag_without_fusion_is_refused():
    args = parse_args(["--fusion-metric", "residual"])
    with pytest.raises(ValueError, match="--fusion-metric residual has no effect: no tokens fuse"):
        fuse(build_model(args), args)


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
        return fuse(build_model(args), args)

    told = rf"can fuse at most \d, not \d+; the {least} {flag} here is {largest}; --fusion-clip "
    with pytest.raises(ValueError, match=told):
        fuse_by(amount.split()[1])
    fuse_by(largest)
    with pytest.raises(ValueError, match=flag):
        fuse_by(largest - 1 / 16 if flag == "--fusion-keep" else largest + 1)


def test_an_impossible_plan_names_the_layer():
    args = parse_args(["--fusion-plan", "8,5,0,0,0,0"])
    told = "layer 1 has 8 patch tokens and can fuse at most 4, not 5; --fusion-clip fuses as many as a layer can$"
    with pytest.raises(ValueError, match=told):
        fuse(build_model(args), args)


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        ("--fusion-strategy all --fusion-token 4", (4, 4, 4, 2, 1, 0)),
        ("--fusion-strategy upper --fusion-layer 4 --fusion-total 40", (0, 0, 0, 0, 8, 4)),
        ("--fusion-plan 8,5,0,0,0,1", (8, 4, 0, 0, 0, 1)),
        ("--fusion-strategy all --fusion-token 2", (2, 2, 2, 2, 2, 2)),
    ],
)
def test_too_large_an_amount_is_clipped_if_asked_for(flags, plan):
    """To half of the patches that are left: 16, 12, 8, 4, 2 and 1 in the first."""
    args = parse_args(f"{TINY} {flags} --fusion-clip".split())
    model = build_model(args)
    fuse(model, args)
    assert injected_plan(model) == plan
    assert token_counts(model) == fusion.token_counts(plan, 17)
