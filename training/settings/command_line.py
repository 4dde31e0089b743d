"""The command line: DeiT's flags under DeiT's names, and those of token fusion.

Nothing here imports PyTorch, which takes seconds: a wrong flag is said at once.
"""

import argparse
import re
import sys
from itertools import chain
from pathlib import Path

from training.settings import flags
from training.settings.parser import HelpFormatter, Parser, path
from training.settings.rates import BOUNDED

RECIPES = Path(__file__).parents[2] / "recipes"
FUSION_AMOUNTS = ("fusion_token", "fusion_total", "fusion_keep", "fusion_plan")  # one of them says how many tokens
WITHOUT_COOLDOWN = ("step", "plateau", "constant")  # timm lengthens only schedules that come to an end

# What other programs take over from a run whose checkpoint they read, in groups of flags that hang together.
RUN_SETTINGS = {
    "model": ("model", "input_size", "in_chans"),
    "data_set": ("data_set", "data_path", "nb_classes", "inat_category", "eval_crop_ratio"),
    "fusion_strategy": ("fusion_strategy", "fusion_layer", "fusion_schedule", *FUSION_AMOUNTS),
    **{f"fusion_{name}": (f"fusion_{name}",) for name in flags.FUSION_METHODS},
}
NOT_GIVEN = (None, "null")  # a setting of a run, as it is in args.json or a file of flags
# Methods of fusion beside which others have no effect, unless these are as by default: fusion.Method refuses them.
METHODS_OF_THEIR_OWN = (
    ("fusion_reduce", "prune", {"fusion_average": "mean"}),
    ("fusion_match", "random", {"fusion_metric": "hidden", "fusion_distance": "cosine"}),
)


# What a run's args.json holds beside its flags: what followed from them, and where and when they ran.
FACTS = (
    *("mixed", "token_counts", "flops", "weights", "processes", "global_batch", "scaled_lr", "updates_per_epoch"),
    *("last_epoch", "versions", "hardware", "date"),
)
# How a run was started and interrupted, which one that repeats it leaves behind.
STARTS = ("config", "auto_resume", "resume_anyway", "local_rank")


def parse_over(parser: Parser, argv: list[str] | None, settings: dict) -> argparse.Namespace:
    """Read a command line that goes before the model, data and fusion of a run: what it doesn't say is as there.

    Where it names another model, data set or strategy, nothing that hangs together with it is taken over; where it
    names one amount or plan of fusion, no other; and no method of fusion that has no effect beside what it names.

    Raises:
        ValueError: What would be taken over is nothing that a command line can say.
    """
    args, said = parser.parse_args(argv), parser.said(argv)
    taken = taken_over(args, said, settings)
    for name in vars(args).keys() - said:
        if name in taken:
            setattr(args, name, parser.as_said(name, taken[name], f"--resume {args.resume}: its setting {name}"))
        else:
            setattr(args, name, parser.get_default(name))
    return args


def taken_over(args: argparse.Namespace, said: set[str], settings: dict) -> dict:
    """The settings of a run's model, data and fusion that go together with what a command line says."""
    taken = {}
    for leader, group in RUN_SETTINGS.items():
        names_another = leader in said and getattr(args, leader) != settings.get(leader)
        if leader == "fusion_strategy":
            names_another |= "fusion_plan" in said or (leader in said and settings.get("fusion_plan") not in NOT_GIVEN)
        if not names_another:
            taken |= {name: settings[name] for name in group if name in settings}
    left = without_effect(args, said) | (set(FUSION_AMOUNTS) if said & set(FUSION_AMOUNTS) else set())
    return {name: value for name, value in taken.items() if name not in left}


def without_effect(args: argparse.Namespace, said: set[str]) -> set[str]:
    """Which methods of fusion would have no effect beside what a command line says itself, by their names in args."""
    nothing_fuses = "fusion_strategy" in said and args.fusion_strategy == "no"
    if "fusion_plan" in said:
        nothing_fuses = not re.search("[1-9]", args.fusion_plan)
    if nothing_fuses:
        return {f"fusion_{name}" for name in flags.FUSION_METHODS}
    found = set()
    for name, choice, others in METHODS_OF_THEIR_OWN:
        if name in said and getattr(args, name) == choice:
            found |= set(others)
        if any(other in said and getattr(args, other) != default for other, default in others.items()):
            found.add(name)
    return found


def get_args_parser() -> Parser:
    """The parser of main.py."""
    parser = Parser(
        "main.py",
        usage="python main.py [FLAGS]",
        description="Train Vision Mamba with token fusion. Words of a flag may be joined by - or _.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="YAML of flags and their values, or a run's args.json; flags on the command line go first",
    )
    parser.add_argument(
        "--recipe",
        default="deit",
        choices=("deit", *sorted(path.stem for path in RECIPES.glob("*.yaml"))),
        help="deit, the defaults below, for about 300 epochs; or a file of recipes/, which --config and flags outrank: "
        "short, for a few epochs of a small model",
    )
    for add_group in (
        flags.add_model_flags,
        flags.add_fusion_flags,
        flags.add_data_flags,
        flags.add_loading_flags,
        flags.add_augmentation_flags,
        flags.add_loss_flags,
        flags.add_optimizer_flags,
        flags.add_rate_flags,
        flags.add_run_flags,
        flags.add_process_flags,
    ):
        add_group(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, parser: Parser | None = None, settings: dict | None = None
) -> argparse.Namespace:
    """Read the command line and check what flags alone can tell; ends the program with one line if they are wrong.

    Args:
        argv: Words of the command line; this program's own if None.
        parser: That of main.py, perhaps with more flags.
        settings: Of a run; its model, data and fusion count where the command line doesn't say them (parse_over).
    """
    parser = parser or get_args_parser()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.config:
        argv = [*read_config(parser, "--config", args.config, argv), *argv]
        args = parser.parse_args(argv)
    if args.recipe != "deit":
        argv = [*read_config(parser, "--recipe", RECIPES / f"{args.recipe}.yaml", argv), *argv]
    args = parser.parse_args(argv) if settings is None else parse_over(parser, argv, settings)
    args.mixed = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    for wrong, message in contradictions(args):
        if wrong:
            parser.error(f"argument {message}")
    return args


def contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """What flags that are each right can do wrong together: whether they do, and what to say."""
    warms_up = args.warmup_epochs > 0 and args.warmup_lr > args.lr
    step_size = args.batch_size * args.grad_accum_steps
    teacher, taught = args.teacher_model and args.teacher_path, args.distillation_type != "none"
    return [
        (
            args.mixed and step_size % 2 == 1 and not args.eval,
            f"--batch-size: mixup and cutmix pair images, so it must be even, not {step_size}",
        ),
        (
            args.cutmix_minmax is not None and not args.cutmix_minmax[0] < args.cutmix_minmax[1],
            "--cutmix-minmax: MIN must be below MAX",
        ),
        (
            args.cooldown_epochs > 0 and args.sched in WITHOUT_COOLDOWN,
            f"--cooldown-epochs: is for cosine, tanh and poly, not for --sched {args.sched}",
        ),
        (
            args.sched_on_updates and args.sched == "plateau",
            "--sched-on-updates: --sched plateau goes by the top-1 of epochs",
        ),
        (
            args.min_lr > args.lr and args.sched in BOUNDED and not args.eval,
            f"--min-lr: {args.min_lr:g} is above --lr {args.lr:g}, so that the rate would rise",
        ),
        (
            warms_up and not args.eval,
            f"--warmup-lr: {args.warmup_lr:g} is above --lr {args.lr:g}, so that the rate would fall to it",
        ),
        (
            args.lr_noise is not None and len(args.lr_noise) > 2,
            "--lr-noise: takes where noise starts, and perhaps where it ends",
        ),
        (
            args.lr_noise is not None and len(args.lr_noise) == 2 and args.lr_noise[0] >= args.lr_noise[1],
            "--lr-noise: must start before it ends",
        ),
        (
            taught and not teacher,
            "--distillation-type: needs the teacher, --teacher-model NAME --teacher-path FILE",
        ),
        (
            not taught and bool(args.teacher_model or args.teacher_path),
            "--teacher-model: has no effect without --distillation-type soft or hard",
        ),
        (args.cosub and taught, "--cosub: is another kind of teaching than --distillation-type; choose one"),
        (
            args.cosub and not (args.drop_path and args.train_mode),
            "--cosub: both sub-models are the same without --drop-path",
        ),
        (
            args.compile and args.scan_recompute,
            "--compile: can't follow --scan-recompute, and keeps less for the backward pass itself",
        ),
        (
            args.compile and args.if_random_cls_token_position,
            "--compile: is for one order of tokens, not for --if_random_cls_token_position",
        ),
        (
            args.if_random_token_rank and not args.train_mode,
            "--if_random_token_rank: is a part of what --no-train-mode leaves out",
        ),
        (
            args.if_random_cls_token_position and not args.train_mode,
            "--if_random_cls_token_position: is a part of what --no-train-mode leaves out",
        ),
        (
            args.bce_loss and args.smoothing > 0,
            f"--bce-loss: takes every class above 0 for right, which is all of them with --smoothing {args.smoothing}; "
            "add --smoothing 0",
        ),
        (args.smoothing == 1 and not args.mixed, "--smoothing: of 1 leaves nothing to learn"),
        (
            args.grad_checkpointing and args.scan_recompute,
            "--scan-recompute: is a part of what --grad-checkpointing does; choose one",
        ),
        (args.eval and not args.resume, "--eval: needs the checkpoint to evaluate, --resume FILE"),
        (args.check and args.eval, "--check: is about training, --eval about a checkpoint; choose one"),
        (args.auto_resume and not args.output_dir, "--auto-resume: needs the run's --output_dir DIR"),
        (
            args.auto_resume and bool(args.resume),
            "--auto-resume: finds the checkpoint itself, leave --resume out",
        ),
        (args.save_steps > 0 and not args.output_dir, "--save-steps: needs a place, --output_dir DIR"),
        (args.log_images > 0 and not args.output_dir, "--log-images: needs a place, --output_dir DIR"),
        (args.log_wandb and not args.output_dir, "--log-wandb: sends what is logged in --output_dir DIR"),
        (bool(args.finetune and args.resume), "--finetune: starts from new, --resume goes on; choose one"),
    ]


def read_config(parser: Parser, flag: str, path: str | Path, argv: list[str]) -> list[str]:
    """A YAML file's flags and values, but those that the command line says itself, as words of a command line.

    Ends the program with one line if they are wrong.
    """
    import yaml  # comes with timm, and nothing else here needs it

    args, said = parser.parse_args(argv), parser.said(argv)
    try:
        # All values as they are written: YAML takes the strategy `no` for a false.
        settings = yaml.load(Path(path).read_text(), yaml.BaseLoader)
        if not isinstance(settings, dict):
            raise ValueError("holds no flags with values")
        if set(FACTS) & settings.keys():
            settings = repeated(args, said, settings)
        words = [(parser.meaning(name), parser.words(name, value)) for name, value in settings.items()]
        return [word for meaning, some in words if meaning not in said for word in some]
    except RecursionError:
        parser.error(f"argument --config: {path}: its lists are too deep")
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        parser.error(f"argument {flag}: {path}: {error}")


def repeated(args: argparse.Namespace, said: set[str], settings: dict) -> dict:
    """What of a run's args.json makes another run like it: its flags, unless the command line has others."""
    left_out = {*FACTS, *STARTS, *chain(*RUN_SETTINGS.values())} - taken_over(args, said, settings).keys()
    if Path(settings.get("resume", "")).parent == Path(settings.get("output_dir", "")):
        left_out.add("resume")  # it went on with itself
    return {name: value for name, value in settings.items() if name not in left_out}
