"""Command lines in the shapes of the published scripts: read as they stand, and a few that train a step."""

import json
import re
import shlex
from itertools import pairwise

import pytest
import torch
from timm.models import create_model
from torch.distributed import launch
from torch.distributed import run as torchrun

import main
import models_mamba  # noqa: F401, registers the models
import predict
import visualize
from fusion import flops, inject
from training.build.fusion import fuse, token_counts
from training.settings.command_line import parse_args

NAME = "{}_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
TINY, SMALL = NAME.format("vim_tiny_patch16_224"), NAME.format("vim_small_patch16_224")
SHAPE = (
    "--model {model} --batch-size 128 --drop-path {drop_path} --weight-decay {decay} --num_workers 25 "
    "--data-set CIFAR --data-path ./datasets/cifar-100-python --output_dir ./output/{model} --no_amp {fusion}"
)
LAUNCHERS = [
    "python -m torch.distributed.launch --nproc_per_node=1 --use_env main.py",
    "CUDA_VISIBLE_DEVICES=0 torchrun --master_port=6666 --nproc_per_node=1 main.py",
    "python main.py",
]
LAYER_5 = "--fusion-layer 5 is not used by"
# What a script says of fusion; the sequence's length at the end; the notes.
FUSION = [
    ("", 197, ()),
    ("--fusion-strategy no", 197, ()),
    ("--fusion-strategy no --fusion-layer 5", 197, (f"{LAYER_5} no",)),
    (
        "--fusion-strategy no --fusion-layer 4 --fusion-token 8",
        197,
        ("--fusion-layer 4 is not used by no", "--fusion-token 8 is not used by no"),
    ),
    ("--fusion-strategy all --fusion-token 7", 29, ()),
    ("--fusion-strategy all --fusion-layer 5 --fusion-token 7", 29, (f"{LAYER_5} all",)),
    (
        "--fusion-strategy alternate --fusion-layer 5 --fusion-token 8",
        101,
        ("--fusion-layer 5 is not used by alternate",),
    ),
    ("--fusion-strategy upper --fusion-layer 4 --fusion-token 8", 37, ()),
    ("--fusion-strategy lower --fusion-layer 4 --fusion-token 8", 165, ()),
    (
        "--fusion-strategy upper --fusion-layer 4 --fusion-token 8 --visualize",
        37,
        ("--visualize has no effect: visualize.py draws what fuses",),
    ),
    (
        "--fusion-strategy lower --fusion-layer 12 --fusion-token 8 --bi-merge --dr",
        101,
        ("--bi-merge has no effect: --fusion-strategy alone turns fusion on", "--dr has no effect"),
    ),
    ("--fusion-strategy lower --fusion-layer 24 --fusion-token 15 --fusion-clip", 2, ()),
]


def words_of(command):
    """The words of main.py in a command line, as its launcher passes them on."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] == "torchrun":
        return torchrun.parse_args(words[1:]).training_script_args
    if words[1] == "-m":
        return launch.parse_args(words[3:]).training_script_args
    return words[2:]


@pytest.fixture(scope="module")
def tiny():
    """The tiny model at 224 pixels, without memory: only its plan is looked at."""
    with torch.device("meta"):
        return create_model(TINY)


@pytest.mark.parametrize(("fusion", "left", "notes"), FUSION, ids=[fusion or "without" for fusion, *_ in FUSION])
@pytest.mark.parametrize("launcher", LAUNCHERS, ids=["launch", "torchrun", "python"])
def test_scripts_of_the_paper(tiny, launcher, fusion, left, notes):
    for model, drop_path, decay in ((TINY, "0.0", 0.1), (SMALL, "0.05", 0.05)):
        line = SHAPE.format(model=model, drop_path=drop_path, decay=decay, fusion=fusion)
        settings = parse_args(words_of(f"{launcher} {line}"))
        main.check_names(settings)
        assert (settings.model, settings.batch_size, settings.amp) == (model, 128, False)
        assert (settings.drop_path, settings.weight_decay) == (float(drop_path), decay)
        assert settings.notes == notes
        assert (settings.fusion_layer is None) == (settings.fusion_strategy not in ("lower", "upper"))
        fuse(tiny, settings)
        assert token_counts(tiny)[-1] == left


def test_the_script_that_asks_the_13th_layer_for_too_much(tiny):
    line = SHAPE.format(model=TINY, drop_path="0.0", decay=0.1, fusion="--fusion-strategy all --fusion-token 15")
    settings = parse_args(words_of(f"{LAUNCHERS[0]} {line}"))
    told = (
        "layer 12 has 16 patch tokens and can fuse at most 8, not 15; .*; --fusion-clip fuses as many as a layer can$"
    )
    with pytest.raises(ValueError, match=told):
        fuse(tiny, settings)
    fuse(tiny, parse_args([*words_of(f"{LAUNCHERS[0]} {line}"), "--fusion-clip"]))
    assert token_counts(tiny)[11:] == (32, 17, 9, 5, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        ("--if_amp --distributed", 1),
        ("--no_amp --no_continue_inf --no_nan2num", 2),
        ("--if_continue_inf --no_random_cls_token_position --no_random_token_rank", 2),
        ("--resplit --reprob 0.25 --recount 1", 1),
        ("--finetune ./output/checkpoint.pth --attn-only", 1),
        ("--local-rank 0 --dist_url env:// --world_size 1 --device cuda --pin-mem --no-repeated-aug", 0),
        ("--model-ema --model-ema-decay 0.99996 --model-ema-force-cpu --unscale-lr --bce-loss --smoothing 0", 0),
        ("--ThreeAugment --src --eval-crop-ratio 0.875 --dist-eval --no-train-mode", 0),
    ],
)
def test_flags_of_deit_and_vim(flags, notes):
    settings = parse_args(words_of(f"{LAUNCHERS[1]} --model {TINY} --data-set IMNET --data-path /imagenet {flags}"))
    main.check_names(settings)
    assert len(settings.notes) == notes


STEP = "--num_workers 0 --batch-size 16 --epochs 1 --no-aug --no-repeated-aug --no-model-ema".split()


@pytest.mark.parametrize(
    ("flags", "plan", "noted"),
    [
        (
            "--fusion-strategy all --fusion-layer 5 --fusion-token 1 --visualize --bi-merge",
            [17, 16, 15, 14, 13, 12, 11],
            {"--fusion-layer 5", "--visualize", "--bi-merge"},
        ),
        ("--fusion-strategy all --fusion-token 4 --fusion-clip", [17, 13, 9, 5, 3, 2, 2], set()),
    ],
)
def test_they_train_and_the_first_screen_says_what_became_of_them(images, tmp_path, capsys, flags, plan, noted):
    """The plan that is carried out is on the screen and in every record; an unused layer is in none."""
    data = ["--data-set", "FOLDER", "--data-path", str(images), "--output_dir", str(tmp_path)]
    main.main([*data, *STEP, *flags.split()])
    out = capsys.readouterr().out
    assert f"           {' '.join(map(str, plan))}\n" in out
    assert out.count("\nnote       ") == len(noted)
    assert all(f"\nnote       {flag} " in out for flag in noted)
    assert ("at most half of a layer's" in out) == ("--fusion-clip" in flags)
    args = json.loads((tmp_path / "args.json").read_text())
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["settings"]
    for record in (args, saved):
        assert list(record["token_counts"]) == plan
        assert record["fusion_layer"] is None
        assert len(record["notes"]) == len(noted)
    fused = create_model("vim_pico_patch2_8", num_classes=2)
    inject(fused, [before - after for before, after in pairwise(plan)])
    assert args["flops"] == flops(fused)

    main.main([*data[:4], "--num_workers", "0", "--eval", "--resume", str(tmp_path / "checkpoint.pth")])
    out = capsys.readouterr().out
    assert f"           {' '.join(map(str, plan))}\n" in out
    assert "note  " not in out


def test_a_record_of_notes_repeats_without_them(images, tmp_path, capsys):
    data = ["--data-set", "FOLDER", "--data-path", str(images), *STEP]
    flags = "--fusion-strategy all --fusion-layer 5 --fusion-token 1 --visualize".split()
    main.main([*data, *flags, "--output_dir", str(tmp_path / "a")])
    again = parse_args(["--config", str(tmp_path / "a" / "args.json")])
    assert (again.notes, again.fusion_strategy, again.fusion_layer, again.fusion_token) == ((), "all", None, 1)


@pytest.mark.parametrize("program", [predict, visualize])
def test_other_programs_say_it_too(trained, images, tmp_path, capsys, program):
    flags = [
        "--resume",
        str(trained / "checkpoint.pth"),
        *"--fusion-strategy all --fusion-layer 5 --fusion-token 1".split(),
    ]
    if program is predict:
        with pytest.raises(SystemExit) as exit_:
            predict.main([str(next(images.rglob("*.png"))), *flags])
        assert exit_.value.code == 0
    else:
        visualize.main([*flags, "--images", "2", "--output_dir", str(tmp_path)])
    assert f"{program.PROGRAM}: --fusion-layer 5 is not used by all\n" in capsys.readouterr().err
