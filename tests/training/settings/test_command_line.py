"""The command line: spellings, bounds and what flags alone can tell is wrong."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import fusion
from training.settings.command_line import get_args_parser, parse_args
from training.settings.failure import fail
from training.settings.flag import names
from training.settings.model import FusionMethodSettings
from training.settings.over_run import parse_over

DEIT_FLAGS = """
    --batch-size --epochs --model --input-size --drop --drop-path --model-ema --model-ema-decay --opt --opt-eps
    --opt-betas --clip-grad --momentum --weight-decay --sched --lr --lr-noise --lr-noise-pct --lr-noise-std --warmup-lr
    --min-lr --decay-epochs --warmup-epochs --cooldown-epochs --patience-epochs --decay-rate --color-jitter --aa
    --smoothing --train-interpolation --repeated-aug --reprob --remode --recount --mixup --cutmix --cutmix-minmax
    --mixup-prob --mixup-switch-prob --mixup-mode --data-path --data-set --inat-category --output_dir --device --seed
    --resume --start_epoch --eval --eval-crop-ratio --dist-eval --num_workers --pin-mem --unscale-lr --if_amp --no_amp
    --amp-dtype --local-rank --world_size --dist_url --fusion-strategy --fusion-layer --fusion-token --finetune
    --no-model-ema --no-repeated-aug --no-pin-mem
""".split()


@pytest.mark.parametrize("flag", DEIT_FLAGS)
def test_flags_of_deit(flag):
    assert flag in get_args_parser()._option_string_actions


def test_defaults_are_deits_where_nothing_speaks_against_it():
    args = parse_args([])
    deit = {
        "batch_size": 64,
        "epochs": 300,
        "drop": 0.0,
        "drop_path": 0.1,
        "model_ema": True,
        "model_ema_decay": 0.99996,
        "opt": "adamw",
        "opt_eps": 1e-8,
        "opt_betas": None,
        "clip_grad": None,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "sched": "cosine",
        "lr": 5e-4,
        "lr_noise": None,
        "lr_noise_pct": 0.67,
        "lr_noise_std": 1.0,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "decay_epochs": 30,
        "warmup_epochs": 5,
        "patience_epochs": 10,
        "decay_rate": 0.1,
        "color_jitter": 0.3,
        "aa": "rand-m9-mstd0.5-inc1",
        "smoothing": 0.1,
        "train_interpolation": "bicubic",
        "repeated_aug": True,
        "reprob": 0.25,
        "remode": "pixel",
        "recount": 1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "cutmix_minmax": None,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "seed": 0,
        "eval_crop_ratio": 0.875,
        "dist_eval": False,
        "num_workers": 10,
        "pin_mem": True,
        "inat_category": "name",
    }
    assert {name: getattr(args, name) for name in deit} == deit
    assert args.data_set == "DIGITS"
    assert args.model == "vim_pico_patch2_8"


def test_every_choice_of_the_method_has_a_flag():
    assert {f"fusion_{name}" for name in fusion.CHOICES} == set(names(FusionMethodSettings))


def test_flags_are_read_without_pytorch():
    program = "import sys, training.settings.command_line; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True)


@pytest.mark.parametrize("joined", ["-", "_"])
def test_words_join_by_hyphen_or_underscore(joined):
    args = parse_args(
        [f"--batch{joined}size=6", f"--num{joined}workers", "3", f"--no{joined}amp", f"--local{joined}rank=0"]
    )
    assert (args.batch_size, args.num_workers, args.amp, args.local_rank) == (6, 3, False, 0)


def test_values_keep_their_underscores():
    assert parse_args(["--data-path=./no_such_dir"]).data_path == "./no_such_dir"


def test_other_processes_keep_quiet(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as exit_:
        parse_args(["--batch-size", "0"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "local"), [("RANK", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_LOCALID")])
@pytest.mark.parametrize(
    ("place", "spoken"),
    [((0, 0), ["all", "machine", "one"]), ((1, 1), ["one"]), ((4, 0), ["machine", "one"])],
)
def test_an_error_is_said_once_by_those_who_meet_it(capsys, monkeypatch, rank, local, place, spoken):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(rank, str(place[0]))
    monkeypatch.setenv(local, str(place[1]))
    for met_by in ("all", "machine", "one"):
        with pytest.raises(SystemExit) as exit_:
            fail("no data", code=1, met_by=met_by)
        assert exit_.value.code == 1
        who = f"rank {place[0]}: " if place[0] else ""
        assert capsys.readouterr().err == (f"main.py: error: {who}no data\n" if met_by in spoken else "")


def test_odd_batches_are_fine_without_mixing():
    assert parse_args(["--batch-size", "9", "--mixup", "0", "--cutmix", "0"]).batch_size == 9


@pytest.mark.parametrize(("given", "size"), [(["224"], (224, 224)), (["224", "160"], (224, 160))])
def test_input_size_is_height_and_width(given, size):
    assert parse_args(["--input-size", *given]).input_size == size


def test_help_has_groups_and_a_line_for_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for group in ("model:", "token fusion:", "data:", "augmentation:", "optimizer:", "learning rate:", "run:"):
        assert group in text
    assert all(action.help for action in get_args_parser()._actions)


def test_quiet_processes_leave_the_time_to_speak(monkeypatch):
    """A launcher ends all processes when one exits, also the one that was about to say why."""
    waited = []
    monkeypatch.setattr("training.settings.failure.SECONDS_TO_SPEAK", 7)
    monkeypatch.setattr("training.settings.failure.time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            fail("no data")
    assert waited == [7]


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("", ("upper", 3, 2, None, None, "FOLDER", "/images", 2)),
        ("--fusion-token 4", ("upper", 3, 4, None, None, "FOLDER", "/images", 2)),
        ("--fusion-total 9", ("upper", 3, 0, 9, None, "FOLDER", "/images", 2)),
        ("--fusion-strategy all --fusion-token 1", ("all", None, 1, None, None, "FOLDER", "/images", 2)),
        ("--fusion-strategy upper --fusion-layer 4", ("upper", 4, 2, None, None, "FOLDER", "/images", 2)),
        ("--fusion-strategy no", ("no", None, 0, None, None, "FOLDER", "/images", 2)),
        ("--fusion-plan 0,1", ("no", None, 0, None, "0,1", "FOLDER", "/images", 2)),
        ("--data-path /moved", ("upper", 3, 2, None, None, "FOLDER", "/moved", 2)),
        ("--data-set FOLDER", ("upper", 3, 2, None, None, "FOLDER", "/images", 2)),
        ("--data-set DIGITS", ("upper", 3, 2, None, None, "DIGITS", None, None)),
    ],
)
def test_a_command_line_goes_before_a_runs_model_data_and_fusion(command, found):
    run = "--fusion-strategy upper --fusion-layer 3 --fusion-token 2 --data-set FOLDER --data-path /images"
    settings = asdict(parse_args([*run.split(), *"--nb-classes 2 --output_dir out --device cpu --epochs 7".split()]))
    parser = get_args_parser()
    args = parse_over(parser, command.split(), settings)
    fused = ("strategy", "layer", "token", "total", "plan")
    names = (*(f"fusion_{name}" for name in fused), "data_set", "data_path", "nb_classes")
    assert tuple(getattr(args, name) for name in names) == found
    assert (args.output_dir, args.device, args.epochs) == ("", None, 300)
    assert parse_over(parser, command.split(), {}) == parser.read(command.split())


def test_a_tilde_is_home_also_where_no_shell_replaced_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/out\nfinetune: ~/a.pth\nteacher-path: ~")
    args = parse_args(["--config=~/run.yaml", "--data-path=~", "--data-set", "FOLDER"])
    assert (args.data_path, args.output_dir) == (str(tmp_path), f"{tmp_path}/out")
    assert (args.finetune, args.teacher_path) == (f"{tmp_path}/a.pth", "")
    assert parse_args(["--resume=~/a.pth", "--eval"]).resume == f"{tmp_path}/a.pth"


TRAINED = "--fusion-strategy all --fusion-token 2 --fusion-order concat "
SCHEDULED = "--fusion-strategy upper --fusion-layer 1 --fusion-total 8 --fusion-schedule increasing"
SCORED = "--fusion-score delta --fusion-match lowest --fusion-metric B"


@pytest.mark.parametrize(
    ("run", "command", "found"),
    [
        (TRAINED + "--fusion-reduce prune", "--fusion-strategy no", {"order": "keep", "reduce": "fuse"}),
        (TRAINED, "--fusion-plan 0,0", {"order": "keep"}),
        (TRAINED, "--fusion-plan 0,1", {"order": "concat"}),
        (TRAINED, "--fusion-strategy no --fusion-plan 0,1", {"order": "concat"}),
        (TRAINED, "--fusion-strategy no --fusion-order concat", {"order": "keep"}),
        (TRAINED + "--fusion-average size", "--fusion-reduce prune", {"average": "mean", "order": "concat"}),
        (TRAINED + "--fusion-reduce prune", "--fusion-average size", {"reduce": "fuse", "order": "concat"}),
        (TRAINED + "--fusion-reduce prune", "--fusion-average mean", {"reduce": "prune"}),
        (
            TRAINED + "--fusion-metric input --fusion-distance l2",
            "--fusion-match random",
            {"metric": "hidden", "distance": "cosine", "order": "concat"},
        ),
        (TRAINED + "--fusion-match random", "--fusion-distance l1", {"match": "similar", "order": "concat"}),
        (TRAINED + SCORED, "--fusion-score place", {"match": "similar", "metric": "B"}),
        (TRAINED + SCORED, "--fusion-score scan", {"match": "lowest", "metric": "B"}),
        (TRAINED + SCORED, "--fusion-reduce prune", {"match": "lowest", "metric": "hidden"}),
        (TRAINED + SCORED, "--fusion-reduce prune --fusion-metric C", {"match": "similar", "score": "delta"}),
        (TRAINED + "--fusion-score scan", "--fusion-match lowest", {"match": "lowest", "score": "scan"}),
        ("--fusion-plan 2,1", "--fusion-strategy no", {"plan": None}),
        (SCHEDULED, "--fusion-layer 2", {"layer": 2, "schedule": "increasing", "total": 8}),
        (SCHEDULED, "--fusion-layer 5 --fusion-schedule constant", {"layer": 5, "schedule": "constant", "total": 8}),
        (SCHEDULED, "--fusion-total 4", {"layer": 1, "schedule": "increasing", "total": 4}),
        ("--fusion-plan 2,1", "--fusion-order concat", {"plan": "2,1"}),
    ],
)
def test_what_conflicts_with_a_command_line_is_not_taken_over(run, command, found):
    args = parse_over(get_args_parser(), command.split(), asdict(parse_args(run.split())))
    assert {name: getattr(args, f"fusion_{name}") for name in found} == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ["a"]),
        ("input_size", ()),
        ("input_size", "wide"),
        ("input_size", [8, -8]),
        ("input_size", 8),
        ("input_size", [8, 8, 8]),
        ("in_chans", 2),
        ("data_set", None),
        ("data_path", {}),
        ("nb_classes", 0),
        ("eval_crop_ratio", "x"),
        ("fusion_token", 2.5),
        ("fusion_plan", [1, 2]),
        ("fusion_average", "median"),
        ("fusion_keep", float("nan")),
    ],
)
def test_settings_that_no_flag_takes_are_refused(name, value):
    settings = asdict(parse_args([])) | {name: value}
    with pytest.raises(ValueError, match=f"--resume x.pth: its setting {name}: "):
        parse_over(get_args_parser(), ["--resume", "x.pth"], settings)


def test_settings_are_taken_over_as_flags_give_them():
    run = (
        "--input-size 8 16 --in-chans 1 --fusion-strategy upper --fusion-layer 1 --fusion-keep 0.5 --eval-crop-ratio 1"
    )
    settings = asdict(parse_args(run.split()))
    args = parse_over(get_args_parser(), [], settings)
    names = ("model", "input_size", "in_chans", "fusion_layer", "fusion_keep", "fusion_token", "nb_classes")
    assert [getattr(args, name) for name in names] == [settings[name] for name in names]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("folder", "FOLDER"),
        ("Cifar", "CIFAR"),
        ("CIFAR100", "CIFAR"),
        ("cifar10", "CIFAR10"),
        ("wds/Cifar", "wds/Cifar"),
    ],
)
def test_a_data_set_has_one_name(given, name):
    assert parse_args(["--data-set", given, "--data-path", "."]).data_set == name


# A file of flags


def configured(tmp_path, text, *argv):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse_args(["--config", str(path), *argv])


def test_a_file_of_flags_and_flags_on_top(tmp_path):
    text = """
        batch-size: 6
        lr: 1e-3
        opt_betas: [0.9, 0.95]
        input-size: [8, 16]
        model-ema: false
        no_amp: true
        auto-resume: false
        no-repeated-aug: false
        pin-mem: null
        clip-grad: null
        fusion-strategy: no
        fusion-plan: [0, 1, 2]
        sched: step
    """
    args = configured(tmp_path, text, "--batch-size", "4", "--model-ema", "--sched=cosine")
    assert (args.batch_size, args.lr, args.opt_betas, args.input_size) == (4, 1e-3, [0.9, 0.95], (8, 16))
    assert (args.model_ema, args.amp, args.auto_resume, args.clip_grad) == (True, False, False, None)
    assert (args.fusion_plan, args.sched) == ("0,1,2", "cosine")
    assert (args.repeated_aug, args.pin_mem, args.fusion_strategy) == (True, True, "no")
    assert configured(tmp_path, text).model_ema is False
    assert configured(tmp_path, text, "--if_amp").amp is True
    assert configured(tmp_path, "if_amp: false").amp is False
    assert configured(tmp_path, "pin-mem: false").pin_mem is False


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batchsize: 6", "run.yaml: unknown batchsize, did you mean --batch-size"),
        ("batch-size: true", "'true' is not a whole number"),
        ("no_amp: 3", "run.yaml: no_amp: is true or false, not 3"),
        ("batch-size: eight", "'eight' is not a whole number"),
        ("- batch-size", "run.yaml: holds no flags"),
        ("", "run.yaml: holds no flags"),
        ("a: [", "run.yaml: "),
        ("opt-betas: [[0.9, 0.95]]", "run.yaml: opt-betas: is a value or a list of values"),
        ("fusion-plan: [[1, 2], 3]", "run.yaml: fusion-plan: is a value or a list"),
        ("batch-size: {a: 1}", "run.yaml: batch-size: is a value or a list"),
        ("no_amp: [true]", "run.yaml: no_amp: is true or false"),
        ("opt-betas: &a [*a]", "run.yaml: found unconstructable recursive node"),
        ("opt-betas: " + "[" * 5000, "run.yaml: its lists are too deep"),
        ("if_amp: true\nno_amp: true", "not allowed with"),
    ],
)
def test_a_wrong_file_of_flags_is_one_line(tmp_path, failing, text, complaint):
    assert complaint in failing(configured, tmp_path, text)


def test_a_file_of_flags_that_is_missing_is_named_once(tmp_path, failing):
    line = failing(parse_args, ["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml: No such file or directory (see --help)" in line
    assert line.count("run.yaml") == 1


# A run's args.json


@pytest.fixture
def record(tmp_path):
    """Write an args.json of flags and facts; returns what a command line with it comes to."""

    def read(flags, *argv, **facts):
        settings = vars(parse_args(flags.split())) | {"token_counts": [17, 17], "versions": {"torch": "2"}} | facts
        path = tmp_path / "args.json"
        path.write_text(json.dumps(settings))
        return parse_args(["--config", str(path), *argv])

    return read


EVERYTHING = (
    "--model vim_pico_patch2_8 --input-size 8 16 --if_amp --data-set FOLDER --data-path /images --nb-classes 3 "
    "--fusion-strategy upper --fusion-layer 3 --fusion-token 2 --fusion-average size --opt-eps 1e-9 "
    "--opt-betas 0.9 0.95 --no-repeated-aug --pin-mem --cutmix-minmax 0.2 0.8 --output_dir out --save-steps 3 --aa none"
)


@pytest.mark.parametrize("flags", ["", EVERYTHING, "--no_amp --fusion-plan 0,1"])
def test_a_runs_record_is_a_file_of_flags(record, flags):
    again, first = vars(record(flags)), vars(parse_args(flags.split()))
    assert again.pop("config").endswith("args.json")
    del first["config"]
    assert again == first


def test_a_record_of_a_run_that_was_interrupted_starts_from_new(record):
    args = record("--output_dir out --auto-resume --resume-anyway --local-rank 1", resume="out/checkpoint.pth")
    assert (args.resume, args.auto_resume, args.resume_anyway, args.local_rank) == ("", False, False, None)
    assert args.output_dir == "out"
    assert record("--output_dir out --resume other/a.pth").resume == "other/a.pth"
    assert record("--output_dir out", resume=str(Path("out/checkpoint.pth").resolve())).resume == ""
    assert record("--output_dir out", "--auto-resume", resume="out/checkpoint.pth").auto_resume


def test_other_images_may_have_other_classes(record):
    assert record(EVERYTHING, "--data-path", "/others").nb_classes is None
    assert record(EVERYTHING, "--data-path", "/others", "--nb-classes", "4").nb_classes == 4
    stream = "--data-set wds/x --data-path /images --nb-classes 3"
    assert record(stream, "--data-path", "/others").nb_classes == 3  # which a stream can't tell


def test_names_that_older_versions_kept_as_they_were_typed(record):
    args = record(EVERYTHING, "--data-set", "folder", data_set="folder")
    assert (args.data_set, args.data_path, args.nb_classes) == ("FOLDER", "/images", 3)


def test_finetuning_starts_from_nothing_of_the_run(record):
    args = record("--pretrained --start-epoch 2", "--finetune", "a.pth", resume="old/checkpoint.pth")
    assert (args.finetune, args.pretrained, args.start_epoch, args.resume) == ("a.pth", False, 0, "")


def test_flags_replace_a_runs_model_data_and_fusion_whole(record):
    args = record(EVERYTHING, *"--model vim_nano_patch4_32 --data-set DIGITS --fusion-total 9".split())
    assert (args.input_size, args.data_path, args.nb_classes, args.opt_eps) == (None, None, None, 1e-9)
    assert (args.fusion_strategy, args.fusion_layer, args.fusion_token, args.fusion_total) == ("upper", 3, 0, 9)


def test_an_unknown_entry_of_a_record_is_an_error(record, capsys):
    with pytest.raises(SystemExit):
        record("", batchsize=3)
    assert "args.json: unknown batchsize, did you mean --batch-size" in capsys.readouterr().err
