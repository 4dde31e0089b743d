"""The flags, group by group: DeiT's and timm's under their names, and those of token fusion."""

import argparse
from collections.abc import Callable

from training.settings.parser import ImageSize, above_zero, amount, count, number, path, positive, share

DEFAULT_MODEL = "vim_pico_patch2_8"
AMP_DTYPES = ("bfloat16", "float16")
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

_SWITCH = {"action": argparse.BooleanOptionalAction}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about the model and what of it learns."""
    add = parser.add_argument_group("model").add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="a model of models_mamba.py: vim_tiny_patch16_224, ...")
    add_image_flags(add)
    add("--drop", type=share, default=0.0, metavar="P", help="dropout after the position embedding")
    add(
        "--drop-path",
        type=share,
        default=0.1,
        metavar="P",
        help="how often the last layer's output is dropped; earlier ones less",
    )
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
        help="share of the old average that a step keeps, once warmed up",
    )
    add("--model-ema-force-cpu", action="store_true", help="keep the average off the GPU, saved and not evaluated")
    add(
        "--train-only",
        default="all",
        choices=("all", "mixer", "head"),
        help="let only the mixers, head and position embedding learn, or only the head",
    )
    add("--train-mode", default=True, help="dropout and stochastic depth while training", **_SWITCH)
    add(
        "--if_random_cls_token_position",
        action="store_true",
        help="put the class token at a random place of each training batch",
    )
    add("--if_random_token_rank", action="store_true", help="put all tokens of each training batch in a random order")
    add(
        "--grad-checkpointing",
        action="store_true",
        help="keep only each layer's input for the backward pass: less memory, about a third more time",
    )


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
    add(
        "--fusion-total",
        type=int,
        metavar="N",
        help="instead of --fusion-token: tokens to fuse in all chosen layers together",
    )
    add(
        "--fusion-keep",
        type=share,
        metavar="S",
        help="instead of --fusion-token: share of the patches to leave at the end",
    )
    add(
        "--fusion-schedule",
        default="constant",
        choices=FUSION_SCHEDULES,
        help="the same number of tokens in each chosen layer, or fewer and fewer, or more and more",
    )
    add("--fusion-plan", metavar="R,R,...", help="instead of all these: tokens to fuse after each layer, one by one")
    add_fusion_method_flags(add)


def add_fusion_method_flags(add: Callable) -> None:
    """The flags that say how tokens fuse, whatever the layers."""
    for name, (choices, help) in FUSION_METHODS.items():
        add(f"--fusion-{name}", default=choices[0], choices=choices, help=help)


def add_image_flags(add: Callable) -> None:
    """The flags of the images' size and channels."""
    add(
        "--input-size",
        type=positive,
        nargs="+",
        action=ImageSize,
        metavar="PX",
        help="pixels: one number, or height and width; the model's own if not given",
    )
    add("--in-chans", type=int, default=3, choices=(1, 3), help="channels of the images: 3, or 1 for grey ones")


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that name a trained model."""
    add = parser.add_argument_group("checkpoint").add_argument
    add("--resume", type=path, required=True, metavar="FILE", help="the checkpoint")
    add("--model", metavar="NAME", help="a model of models_mamba.py, for a checkpoint that doesn't say")
    add_image_flags(add)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags that say which images."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data-set",
        default="DIGITS",
        metavar="NAME",
        help="CIFAR or CIFAR100, CIFAR10, IMNET, INAT, INAT19, FMNIST, DIGITS, FOLDER, torch/..., wds/..., tfds/...",
    )
    add("--data-path", type=path, metavar="DIR", help="where the images are")
    add("--download", action="store_true", help="fetch the data set if it is missing and can be fetched")
    add("--nb-classes", type=positive, metavar="N", help="classes, where the data set can't tell")
    add(
        "--inat-category",
        default="name",
        metavar="LEVEL",
        choices=INAT_CATEGORIES,
        help=f"iNaturalist's target: {', '.join(INAT_CATEGORIES[:-1])} or {INAT_CATEGORIES[-1]}",
    )
    add_crop_flag(add)


def add_crop_flag(add: Callable) -> None:
    """The flag of how much of a test image is seen."""
    add(
        "--eval-crop-ratio",
        type=number(float, 0, 1, above=True),
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


def add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about how training images are changed."""
    add = parser.add_argument_group("augmentation").add_argument
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


def add_loss_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about what is minimised."""
    add = parser.add_argument_group("loss").add_argument
    add(
        "--bce-loss",
        action="store_true",
        help="binary cross entropy with every class that was mixed into an image, as in DeiT III; needs --smoothing 0",
    )
    add(
        "--cosub",
        action="store_true",
        help="two sub-models, as drop path draws them, that also teach each other, by binary cross entropy",
    )
    add(
        "--distillation-type",
        default="none",
        choices=("none", "soft", "hard"),
        help="learn a teacher's probabilities, or its most likely class",
    )
    add("--teacher-model", default="", metavar="NAME", help="a timm model, or one of models_mamba.py without fusion")
    add("--teacher-path", type=path, default="", metavar="FILE", help="its checkpoint")
    add("--distillation-alpha", type=share, default=0.5, metavar="A", help="the teacher's share of the loss")
    add("--distillation-tau", type=above_zero, default=1.0, metavar="T", help="temperature of soft probabilities")


def add_optimizer_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about how weights are updated."""
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--batch-size",
        type=positive,
        default=64,
        metavar="N",
        help="images that go through the model of each process at a time",
    )
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
    add("--if_nan2num", action="store_true", help="count a loss that is not finite as 0, without a gradient")
    add("--momentum", type=share, default=0.9, metavar="M", help="momentum, for optimizers that have one")
    add(
        "--weight-decay",
        type=amount,
        default=0.05,
        metavar="W",
        help="weight decay; norms, biases, embeddings, A_log and D are spared",
    )


def add_rate_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about the learning rate and its schedule."""
    add = parser.add_argument_group("learning rate").add_argument
    add("--epochs", type=positive, default=300, metavar="N", help="epochs of the schedule")
    add(
        "--lr",
        type=above_zero,
        default=5e-4,
        metavar="LR",
        help="learning rate for 512 images a step of all processes, scaled linearly to the actual number",
    )
    add("--unscale-lr", action="store_true", help="take --lr, --warmup-lr and --min-lr as they are")
    add(
        "--layer-decay",
        type=number(float, 0, 1, above=True),
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
        default=False,
        help="a new rate for every step, not every epoch: short runs warm up and decay smoothly",
        **_SWITCH,
    )
    add(
        "--warmup-epochs",
        type=count,
        default=5,
        metavar="N",
        help="epochs of linear warm-up, the first ones of --epochs",
    )
    add("--warmup-lr", type=amount, default=1e-6, metavar="LR", help="where the warm-up starts; scaled like --lr")
    add("--min-lr", type=amount, default=1e-5, metavar="LR", help="where the schedule ends; scaled like --lr")
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
        help="cosine, tanh and poly: epochs at the lowest rate after the schedule",
    )
    add(
        "--lr-noise",
        type=share,
        nargs="+",
        metavar="PART",
        help="parts of the schedule at which noise on the rate starts, and ends",
    )
    add(
        "--lr-noise-pct",
        type=number(float, 0, 1, above=True),
        default=0.67,
        metavar="P",
        help="largest noise, as a share of the rate",
    )
    add("--lr-noise-std", type=amount, default=1.0, metavar="S", help="standard deviation of the noise")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about what the run keeps, where it starts, and on what it computes."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--output_dir",
        type=path,
        default="",
        metavar="DIR",
        help="where checkpoints, log.txt and TensorBoard files go, or --eval's scores.json; without it nothing is kept",
    )
    add(
        "--log-images",
        type=count,
        default=0,
        metavar="N",
        help="every N epochs show in TensorBoard training images, what fuses in a test image, and how alike tokens are",
    )
    add("--log-wandb", action="store_true", help="give Weights & Biases what TensorBoard gets; needs the package wandb")
    add("--wandb-project", default="vision-mamba", metavar="NAME", help="its project")
    add("--resume", type=path, default="", metavar="FILE", help="continue from this checkpoint, or --eval it")
    add(
        "--finetune",
        type=path,
        default="",
        metavar="FILE",
        help="start from these weights, ours or published; where the head lacks a class, a new head takes its place",
    )
    add("--auto-resume", action="store_true", help="go on with what --output_dir holds, from its furthest checkpoint")
    add("--resume-anyway", action="store_true", help="continue although batch size, plan or the like are others now")
    add("--save-steps", type=count, default=0, metavar="N", help="save every N steps too, not only after each epoch")
    add(
        "--start_epoch",
        type=count,
        default=0,
        metavar="N",
        help="first epoch, counted from 0, unless a checkpoint says it",
    )
    add(
        "--eval",
        action="store_true",
        help="evaluate the checkpoint of --resume, with its model, data and fusion unless flags say others",
    )
    add(
        "--check",
        action="store_true",
        help="build everything, train one batch, write and read a checkpoint, say what was found, and stop",
    )
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),  # what NumPy takes
        default=0,
        metavar="N",
        help="what weights, order of images and augmentation are drawn by",
    )
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
        choices=("auto", "reference", "cpu", "triton", "cuda"),
        help="what scans: plain PyTorch, C++, Triton, or mamba-ssm; python -m ssm says what there is",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the model with torch.compile, which takes a minute or more; not with mamba-ssm or reference",
    )
    add(
        "--scan-recompute",
        action="store_true",
        help="make what the scan needs again in the backward pass; with the C++ scan about 40 %% less memory",
    )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags about processes that train together."""
    add = parser.add_argument_group("several processes").add_argument
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
    add("--local-rank", type=int, metavar="N", help="passed by old launchers; not used")
