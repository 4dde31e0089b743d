"""The command line: DeiT's flags under DeiT's names, and those of token fusion.

Nothing here imports PyTorch, which takes seconds: a wrong flag is said at once.
"""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DEFAULT_MODEL = "vim_pico_patch2_8"
AMP_DTYPES = ("bfloat16", "float16")
SECONDS_TO_SPEAK = 15
INAT_CATEGORIES = ("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name")
# What fusion.SCHEDULES and fusion.CHOICES hold, which come with PyTorch.
FUSION_SCHEDULES = ("constant", "decreasing", "increasing")
FUSION_METHODS = {
    "average": (
        ("mean", "size"),
        "a fused token is the mean of its parts, or weighs them by their patches",
    ),
    "metric": (
        ("hidden", "residual", "input"),
        "compare tokens by the mixer's output, the sum before it, or the sum after it",
    ),
    "distance": (("cosine", "l2", "l1"), "similarity of two tokens"),
    "order": (("keep", "concat"), "leave tokens in sequence order, or as ToMe does"),
    "reduce": (("fuse", "prune"), "average a token into the other, or drop it"),
    "match": (("similar", "random"), "fuse the most similar pairs, or random ones for comparison"),
}
FUSION_AMOUNTS = ("fusion_token", "fusion_total", "fusion_keep", "fusion_plan")  # one of them says how many tokens
WITHOUT_COOLDOWN = ("step", "plateau", "constant")  # timm lengthens only schedules that come to an end


def fail(message: object, *, code: int = 2, met_by: str = "all", program: str = "main.py") -> NoReturn:
    """End the program with one line.

    Args:
        message: What is wrong.
        code: The exit code.
        program: What the user started.
        met_by: Who meets this error, so that it is said once: `all` processes, those of a `machine`, or `one` of them.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if rank == 0 or met_by == "one" or (met_by == "machine" and local_rank == 0):
        who = f"rank {rank}: " if rank else ""
        print(f"{program}: error: {who}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    else:
        # A launcher ends all processes when one exits: the one that speaks must have had the time to.
        time.sleep(SECONDS_TO_SPEAK)
    sys.exit(code)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where it says more than "off"."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=118)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes hyphens and underscores alike, knows no abbreviations and fails in one line."""

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        args = [self._spelling(arg) for arg in (sys.argv[1:] if args is None else args)]
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0], self._option_string_actions)}")
        return namespace

    def _spelling(self, arg: str) -> str:
        """The registered spelling of a flag, whichever way its words are joined."""
        name, equals, value = arg.partition("=")
        registered = {option.replace("_", "-"): option for option in self._option_string_actions}
        return registered.get(name.replace("_", "-"), name) + equals + value if name.startswith("--") else arg

    def words(self, name: str, value: object) -> list[str]:
        """What a flag of this name, hyphens in front left out, and its value are on a command line.

        True and False are for switches, a list is several values, None leaves the flag out.

        Raises:
            ValueError: There is no such flag, or it takes no such value.
        """
        flag = self._spelling(f"--{name}")
        action = self._option_string_actions.get(flag)
        if action is None:
            raise ValueError(f"unknown {name}{nearest(flag, self._option_string_actions)}")
        if isinstance(value, bool) != (action.nargs == 0):
            raise ValueError(f"{name}: {'is true or false' if action.nargs == 0 else 'takes a value'}, not {value}")
        if value is True:
            return [flag]
        if value is False:
            return [f"--no-{flag[2:]}"] if isinstance(action, argparse.BooleanOptionalAction) else []
        if isinstance(value, list) and action.nargs is not None:
            return [flag, *map(str, value)]
        values = value if isinstance(value, list) else [value]
        return [] if value is None else [f"{flag}={','.join(map(str, values))}"]

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", program=self.prog)


class ImageSize(argparse.Action):
    """One number or two, height and width; kept as both."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if len(values) > 2:
            parser.error(f"argument {option_string}: takes one number, or height and width")
        setattr(namespace, self.dest, (values[0], values[-1]))


# What other programs take over from a run whose checkpoint they read, in groups of flags that hang together.
RUN_SETTINGS = {
    "model": ("model", "input_size"),
    "data_set": ("data_set", "data_path", "nb_classes", "inat_category", "eval_crop_ratio"),
    "fusion_strategy": ("fusion_strategy", "fusion_layer", "fusion_schedule", *FUSION_AMOUNTS),
    **{f"fusion_{name}": (f"fusion_{name}",) for name in FUSION_METHODS},
}


def parse_over(parser: Parser, argv: list[str] | None, settings: dict) -> argparse.Namespace:
    """Read a command line that goes before the model, data and fusion of a run: what it doesn't say is as there.

    Where it names another model, data set or strategy, nothing that hangs together with it is taken over; where it
    names one amount or plan of fusion, no other.
    """
    unsaid, names = object(), [action.dest for action in parser._actions if action.default != argparse.SUPPRESS]
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unsaid)))
    said = {name for name, value in vars(args).items() if value is not unsaid}
    taken = {}
    for leader, group in RUN_SETTINGS.items():
        names_another = leader in said and getattr(args, leader) != settings.get(leader)
        if not names_another and not (leader == "fusion_strategy" and "fusion_plan" in said):
            taken |= {name: settings[name] for name in group if name in settings}
    if said & set(FUSION_AMOUNTS):
        taken = {name: value for name, value in taken.items() if name not in FUSION_AMOUNTS}
    for name in vars(args).keys() - said:
        setattr(args, name, taken.get(name, parser.get_default(name)))
    return args


def nearest(name: str, names) -> str:
    """', did you mean a or b?' for the names most like this one; nothing where none is."""
    matches = difflib.get_close_matches(name, list(names), n=3)
    return f", did you mean {' or '.join(matches)}?" if matches else ""


def check_known(flag: str, name: str, known) -> None:
    """ValueError for a name that isn't known, with the nearest ones."""
    if name not in known:
        raise ValueError(f"{flag} {name}: no such name{nearest(name, known) or ', known are ' + ', '.join(known)}")


def _number(kind: type, low: float, high: float = float("inf"), above: bool = False):
    """A type for argparse: a number in [low, high], or in (low, high] with above."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not (low < value if above else low <= value) or not value <= high:
            bound = f"above {low}" if above else f"{low} or more"
            raise argparse.ArgumentTypeError(
                f"must be {bound if high == float('inf') else f'{low} to {high}'}, not {text}"
            )
        return value

    return parse


count = _number(int, 0)
positive = _number(int, 1)
amount = _number(float, 0)
share = _number(float, 0, 1)
above_zero = _number(float, 0, above=True)


_SWITCH = {"action": argparse.BooleanOptionalAction}


def add_fusion_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that say after which layers tokens fuse, how many, and how."""
    add = parser.add_argument_group("token fusion").add_argument
    add(
        "--fusion-strategy",
        default="no",
        metavar="NAME",
        help="which layers fuse: no, all, interleaved (or alternate), lower, upper",
    )
    add(
        "--fusion-layer",
        type=int,
        metavar="K",
        help="lower fuses below layer K, upper from layer K on; layers count from 0",
    )
    add("--fusion-token", type=int, default=0, metavar="R", help="tokens to fuse after each chosen layer")
    add("--fusion-total", type=int, metavar="N", help="instead: tokens to fuse in all chosen layers together")
    add("--fusion-keep", type=share, metavar="S", help="instead: share of the patches to leave at the end")
    add(
        "--fusion-schedule",
        default="constant",
        choices=FUSION_SCHEDULES,
        help="as many tokens in each chosen layer, or fewer and fewer, or more and more",
    )
    add("--fusion-plan", metavar="R,R,...", help="instead of all these: tokens to fuse after each layer, one by one")
    add_fusion_method_flags(add)


def add_fusion_method_flags(add: Callable) -> None:
    """The flags that say how tokens fuse, whatever the layers."""
    for name, (choices, help) in FUSION_METHODS.items():
        add(f"--fusion-{name}", default=choices[0], choices=choices, help=help)


def add_input_size(add: Callable) -> None:
    """The flag of the images' size."""
    add(
        "--input-size",
        type=positive,
        nargs="+",
        action=ImageSize,
        metavar="PX",
        help="pixels: one number, or height and width; the model's own if not given",
    )


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that name a trained model."""
    add = parser.add_argument_group("checkpoint").add_argument
    add("--resume", required=True, metavar="FILE", help="the checkpoint")
    add("--model", metavar="NAME", help="a model of models_mamba.py, for a checkpoint that doesn't say")
    add_input_size(add)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that say which images."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data-set",
        default="DIGITS",
        metavar="NAME",
        help="CIFAR (100 classes), CIFAR10, IMNET, INAT, INAT19, FMNIST, DIGITS, FOLDER, torch/..., wds/..., tfds/...",
    )
    add("--data-path", metavar="DIR", help="where the images are")
    add("--download", action="store_true", help="fetch the data set if it is missing and can be fetched")
    add("--nb-classes", type=positive, metavar="N", help="classes, where the data set can't tell")
    add(
        "--inat-category",
        default="name",
        metavar="LEVEL",
        choices=INAT_CATEGORIES,
        help=f"iNaturalist's target: {', '.join(INAT_CATEGORIES[:-1])} or {INAT_CATEGORIES[-1]}",
    )
    add(
        "--eval-crop-ratio",
        type=_number(float, 0, 1, above=True),
        default=0.875,
        metavar="S",
        help="share of the resized test image that is kept, above 32 pixels",
    )


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that say how images are loaded."""
    add = parser.add_argument_group("loading").add_argument
    add(
        "--num_workers",
        type=count,
        default=10,
        metavar="N",
        help="processes that load images, for each process that trains; together at most one for each core is started",
    )
    add(
        "--skip-bad-images",
        action="store_true",
        help="pass over images that can't be read, and count them, instead of stopping with the file's name",
    )
    add("--pin-mem", default=True, help="page-locked batches, which reach a GPU faster", **_SWITCH)


def get_args_parser() -> argparse.ArgumentParser:
    """The parser of main.py."""
    parser = Parser(
        "main.py",
        description="Train Vision Mamba with token fusion. Words of a flag may be joined by - or _.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of flags and their values; flags on the command line go first"
    )
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="a model of models_mamba.py")
    add_input_size(add)
    add("--drop", type=share, default=0.0, metavar="P", help="dropout after the position embedding")
    add("--drop-path", type=share, default=0.1, metavar="P", help="stochastic depth at the last layer")
    add(
        "--model-ema",
        default=True,
        help="keep, evaluate and save an exponential moving average of the weights",
        **_SWITCH,
    )
    add(
        "--model-ema-decay",
        type=share,
        default=0.99996,
        metavar="D",
        help="what the average keeps each step, once warmed up",
    )
    add("--model-ema-force-cpu", action="store_true", help="keep the average off the GPU, saved and not evaluated")
    add(
        "--train-only",
        default="all",
        choices=("all", "mixer", "head"),
        help="let only the mixers, head and position embedding learn, or only the head",
    )
    add("--train-mode", default=True, help="dropout and stochastic depth while training", **_SWITCH)
    add("--if_random_cls_token_position", action="store_true", help="put the class token at a random place each time")
    add("--if_random_token_rank", action="store_true", help="put all tokens in a random order each time")
    add(
        "--grad-checkpointing",
        action="store_true",
        help="keep only each layer's input for the backward pass: less memory, about a third more time",
    )

    add_fusion_flags(parser)
    add_data_flags(parser)
    add_loading_flags(parser)

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--no-aug", action="store_true", help="transform training images as in evaluation")
    add(
        "--color-jitter",
        type=amount,
        default=0.3,
        metavar="S",
        help="strength of random brightness, contrast and saturation; RandAugment replaces it",
    )
    add("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="AutoAugment policy in timm's words, or none")
    add(
        "--ThreeAugment",
        action="store_true",
        help="DeiT III's instead of --aa: grey, solarized or blurred, and --color-jitter",
    )
    add("--src", action="store_true", help="DeiT III's simple random crop: resize the shorter side, pad, crop")
    add("--smoothing", type=share, default=0.1, metavar="S", help="label smoothing")
    add(
        "--train-interpolation",
        default="bicubic",
        choices=("random", "bilinear", "bicubic"),
        help="how training images are resized",
    )
    add(
        "--repeated-aug",
        default=True,
        help="draw each image of an epoch three times, augmented differently, and a third as many images",
        **_SWITCH,
    )
    add("--reprob", type=share, default=0.25, metavar="P", help="how often a part of the image is erased")
    add(
        "--remode",
        default="pixel",
        choices=("const", "rand", "pixel"),
        help="erase with zeros, one random colour, or noise",
    )
    add("--recount", type=positive, default=1, metavar="N", help="parts to erase")
    add("--mixup", type=amount, default=0.8, metavar="A", help="mixup alpha, 0 for none")
    add("--cutmix", type=amount, default=1.0, metavar="A", help="cutmix alpha, 0 for none")
    add(
        "--cutmix-minmax",
        type=share,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="bounds of the cutmix box's side instead of alpha",
    )
    add("--mixup-prob", type=share, default=1.0, metavar="P", help="how often a batch is mixed at all")
    add("--mixup-switch-prob", type=share, default=0.5, metavar="P", help="how often by cutmix, where both are on")
    add(
        "--mixup-mode",
        default="batch",
        choices=("batch", "pair", "elem"),
        help="one mixture for the batch, each pair or each image",
    )

    group = parser.add_argument_group("loss")
    add = group.add_argument
    add("--bce-loss", action="store_true", help="binary cross entropy, a sigmoid for each class, as in DeiT III")
    add("--cosub", action="store_true", help="two sub-models, as drop path draws them, that also teach each other")
    add(
        "--distillation-type",
        default="none",
        choices=("none", "soft", "hard"),
        help="learn a teacher's probabilities, or its most likely class",
    )
    add("--teacher-model", default="", metavar="NAME", help="a timm model, or one of models_mamba.py without fusion")
    add("--teacher-path", default="", metavar="FILE", help="its checkpoint")
    add("--distillation-alpha", type=share, default=0.5, metavar="A", help="the teacher's share of the loss")
    add("--distillation-tau", type=above_zero, default=1.0, metavar="T", help="temperature of soft probabilities")

    group = parser.add_argument_group("optimizer")
    add = group.add_argument
    add("--batch-size", type=positive, default=64, metavar="N", help="images that go through the model at a time")
    add(
        "--grad-accum-steps",
        type=positive,
        default=1,
        metavar="N",
        help="add up the gradients of N batches before each step of the optimizer",
    )
    add("--opt", default="adamw", metavar="NAME", help="a timm optimizer")
    add("--opt-eps", type=above_zero, default=1e-8, metavar="E", help="the optimizer's epsilon")
    add("--opt-betas", type=share, nargs="+", metavar="B", help="the optimizer's betas; its own if not given")
    add("--clip-grad", type=above_zero, metavar="NORM", help="largest norm of the gradient; no clipping if not given")
    add(
        "--max-bad-steps",
        type=count,
        default=0,
        metavar="N",
        help="steps an epoch may lose to a loss or gradient that isn't finite",
    )
    add("--if_continue_inf", action="store_true", help="pass over batches whose loss is not finite, however many")
    add("--if_nan2num", action="store_true", help="replace a loss that is not finite by a number, without a gradient")
    add("--momentum", type=share, default=0.9, metavar="M", help="momentum, for optimizers that have one")
    add(
        "--weight-decay",
        type=amount,
        default=0.05,
        metavar="W",
        help="weight decay; norms, biases, embeddings, A_log and D are spared",
    )

    group = parser.add_argument_group("learning rate")
    add = group.add_argument
    add("--epochs", type=positive, default=300, metavar="N", help="epochs of the schedule")
    add(
        "--lr",
        type=above_zero,
        default=5e-4,
        metavar="LR",
        help="learning rate for a global batch of 512, scaled linearly to the actual one",
    )
    add("--unscale-lr", action="store_true", help="take --lr as it is")
    add(
        "--layer-decay",
        type=_number(float, 0, 1, above=True),
        metavar="F",
        help="each layer's rate is F times the next's",
    )
    add(
        "--sched",
        default="cosine",
        metavar="NAME",
        choices=("cosine", "tanh", "step", "plateau", "poly", "constant"),
        help="cosine, tanh, step, plateau, poly or constant",
    )
    add(
        "--sched-on-updates",
        action="store_true",
        help="a new rate for every step, not every epoch: short runs warm up and decay smoothly",
    )
    add("--warmup-epochs", type=count, default=5, metavar="N", help="epochs of linear warm-up")
    add("--warmup-lr", type=amount, default=1e-6, metavar="LR", help="where the warm-up starts")
    add("--min-lr", type=amount, default=1e-5, metavar="LR", help="where the schedule ends")
    add("--decay-epochs", type=above_zero, default=30.0, metavar="N", help="step: epochs between decays")
    add(
        "--decay-rate",
        type=above_zero,
        default=0.1,
        metavar="R",
        help="step and plateau: factor of a decay; poly: its power",
    )
    add(
        "--patience-epochs",
        type=count,
        default=10,
        metavar="N",
        help="plateau: epochs without a better top-1 before a decay",
    )
    add(
        "--cooldown-epochs",
        type=count,
        default=0,
        metavar="N",
        help="cosine, tanh and poly: epochs at the lowest rate after the schedule (DeiT's 10 never ran)",
    )
    add(
        "--lr-noise",
        type=share,
        nargs="+",
        metavar="PART",
        help="parts of the schedule at which noise on the rate starts, and ends",
    )
    add("--lr-noise-pct", type=share, default=0.67, metavar="P", help="largest noise, as a share of the rate")
    add("--lr-noise-std", type=amount, default=1.0, metavar="S", help="standard deviation of the noise")

    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--output_dir",
        default="",
        metavar="DIR",
        help="where checkpoints, log.txt and TensorBoard files go; nothing is kept if not given",
    )
    add(
        "--log-images",
        type=count,
        default=0,
        metavar="N",
        help="every N epochs show in TensorBoard training images, what fuses in a test image, and how alike tokens are",
    )
    add("--resume", default="", metavar="FILE", help="continue from this checkpoint")
    add(
        "--finetune",
        default="",
        metavar="FILE",
        help="start from these weights, ours or published; a head for other classes is replaced by a new one",
    )
    add("--auto-resume", action="store_true", help="continue what --output_dir holds, from its newest good checkpoint")
    add("--resume-anyway", action="store_true", help="continue although batch size, plan or the like are others now")
    add("--save-steps", type=count, default=0, metavar="N", help="save every N steps too, not only after each epoch")
    add("--start_epoch", type=count, default=0, metavar="N", help="first epoch, unless a checkpoint says it")
    add("--eval", action="store_true", help="evaluate the checkpoint of --resume and stop")
    add(
        "--check",
        action="store_true",
        help="build everything, train one batch, write and read a checkpoint, say what was found, and stop",
    )
    add("--seed", type=count, default=0, metavar="N", help="of weights, order of images and augmentation")
    add("--deterministic", action="store_true", help="only algorithms that give the same bits every time, if slower")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N; a GPU if there is one")
    amp = group.add_mutually_exclusive_group()
    amp.add_argument(
        "--if_amp", dest="amp", action="store_true", default=None, help="mixed precision; by default on a GPU only"
    )
    amp.add_argument("--no_amp", dest="amp", action="store_false", default=None, help="fp32 throughout")
    add("--amp-dtype", default="bfloat16", choices=AMP_DTYPES, help="what mixed precision computes in")

    add(
        "--scan-backend",
        default="auto",
        choices=("auto", "reference", "cpu", "cuda"),
        help="what scans: plain PyTorch, C++, or mamba-ssm; python -m ssm says what there is",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the model with torch.compile: a slow first step, quicker ones then",
    )
    add(
        "--scan-recompute",
        action="store_true",
        help="make what the scan needs again in the backward pass: about 40 %% less activation memory",
    )

    group = parser.add_argument_group("several processes")
    add = group.add_argument
    add("--dist-eval", action="store_true", help="share the test images out instead of every process evaluating all")
    add(
        "--world_size",
        type=positive,
        default=1,
        metavar="N",
        help="processes to start on this machine; a launcher's own setting goes first",
    )
    add(
        "--dist_url",
        default="env://",
        metavar="URL",
        help="tcp://HOST:PORT where they meet; a launcher's own setting goes first",
    )
    add("--local-rank", type=int, metavar="N", help="passed by old launchers")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line and check what flags alone can tell; ends the program with one line if they are wrong."""
    parser = get_args_parser()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.config:
        args = parser.parse_args([*read_config(parser, args.config), *argv])
    args.mixed = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    step_size = args.batch_size * args.grad_accum_steps
    if args.mixed and step_size % 2 and not args.eval:
        parser.error(f"argument --batch-size: mixup and cutmix pair images, so it must be even, not {step_size}")
    if args.cutmix_minmax is not None and not args.cutmix_minmax[0] < args.cutmix_minmax[1]:
        parser.error("argument --cutmix-minmax: MIN must be below MAX")
    if args.cooldown_epochs and args.sched in WITHOUT_COOLDOWN:
        parser.error(f"argument --cooldown-epochs: is for cosine, tanh and poly, not for --sched {args.sched}")
    if args.sched_on_updates and args.sched == "plateau":
        parser.error("argument --sched-on-updates: --sched plateau goes by the top-1 of epochs")
    check_loss(parser, args)
    if args.eval and not args.resume:
        parser.error("argument --eval: needs the checkpoint to evaluate, --resume FILE")
    if args.check and args.eval:
        parser.error("argument --check: is about training, --eval about a checkpoint; choose one")
    if args.auto_resume and not args.output_dir:
        parser.error("argument --auto-resume: needs the run's --output_dir DIR")
    if args.save_steps and not args.output_dir:
        parser.error("argument --save-steps: needs a place, --output_dir DIR")
    if args.auto_resume and args.resume:
        parser.error("argument --auto-resume: finds the checkpoint itself, leave --resume out")
    if args.log_images and not args.output_dir:
        parser.error("argument --log-images: needs a place, --output_dir DIR")
    if args.finetune and args.resume:
        parser.error("argument --finetune: starts from new, --resume goes on; choose one")
    if args.lr_noise is not None and len(args.lr_noise) > 2:
        parser.error("argument --lr-noise: takes where noise starts, and perhaps where it ends")
    return args


def read_config(parser: Parser, path: str) -> list[str]:
    """A YAML file's flags and values as words of a command line; ends the program with one line if it is wrong."""
    import yaml  # comes with timm, and nothing else here needs it

    try:
        settings = yaml.safe_load(Path(path).read_text())
        if not isinstance(settings, dict):
            raise ValueError("holds no flags with values")
        return [word for name, value in settings.items() for word in parser.words(str(name), value)]
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"argument --config: {path}: {error}")


def check_loss(parser: Parser, args: argparse.Namespace) -> None:
    """See that the flags of the loss go together."""
    if args.distillation_type != "none" and not (args.teacher_model and args.teacher_path):
        parser.error("argument --distillation-type: needs the teacher, --teacher-model NAME --teacher-path FILE")
    if args.distillation_type == "none" and (args.teacher_model or args.teacher_path):
        parser.error("argument --teacher-model: has no effect without --distillation-type soft or hard")
    if args.cosub and args.distillation_type != "none":
        parser.error("argument --cosub: is another kind of teaching than --distillation-type; choose one")
    if args.cosub and not (args.drop_path and args.train_mode):
        parser.error("argument --cosub: both sub-models are the same without --drop-path")
