"""The model that flags ask for: its fusion, and the weights that it starts from."""

import argparse
import re
from functools import partial

import torch
from timm.models import create_model, list_models
from torch import Tensor, nn

import fusion
from models_mamba import VisionMamba, checkpoint_filter_fn
from training.data.classes import shortened
from training.settings.parser import check_known
from training.state import checkpoint
from training.words import counted

PATCHES = "patch_embed.proj.weight"  # [D, channels, height, width]


def check_model(name: str) -> None:
    """ValueError, with the nearest names, for a model that there isn't."""
    check_known("--model", name, list_models(module="models_mamba"))


def build_model(args: argparse.Namespace, **options) -> VisionMamba:
    """The model without fusion, of its own image size where args.input_size, which it settles, is None.

    Args:
        args: Flags of the model.
        options: More for the model, by the names of VisionMamba.

    Raises:
        ValueError: There is no such model, or it can't take such images.
    """
    check_model(args.model)
    image_size = {"img_size": args.input_size} if args.input_size else {}
    try:
        model = create_model(args.model, in_chans=args.in_chans, **image_size, **options)
    except (RuntimeError, TypeError, MemoryError) as error:  # the ways in which a size is too large
        if not args.input_size:
            raise
        (height, width), reason = args.input_size, str(error).partition("\n")[0][:200]
        raise ValueError(f"--input-size {height} {width}: no model for such images can be made ({reason})") from error
    args.input_size = model.patch_embed.img_size
    return model


def fuse(model: VisionMamba, args: argparse.Namespace) -> tuple[int, ...]:
    """Put the fusion into the model that flags ask for.

    Returns:
        Token counts before layer 0 and after each layer.

    Raises:
        ValueError: Flags contradict one another, or the plan doesn't fit the model.
    """
    depth, patches = len(model.layers), model.patch_embed.num_patches
    plan = fusion_plan(args, depth, patches)
    method = fusion_method(args, plan)
    try:
        fusion.inject(model, plan, method)
    except ValueError as error:
        raise ValueError(f"{error}{_most(args, depth, patches)}") from None
    return fusion.token_counts(plan, model.pos_embed.shape[1])


def fusion_plan(args: argparse.Namespace, depth: int, patches: int) -> tuple[int, ...]:
    """The plan that flags ask for, for a model of so many layers and patches; ValueError if they contradict."""
    amounts = {"token": args.fusion_token or None, "total": args.fusion_total, "keep": args.fusion_keep}
    given = [f"--fusion-{name}" for name, value in amounts.items() if value is not None]
    if args.fusion_plan is not None:
        others = (args.fusion_strategy != "no", args.fusion_layer is not None, args.fusion_schedule != "constant")
        if given or any(others):
            raise ValueError("--fusion-plan says all: leave strategy, layer, amount and schedule out")
        return fusion.parse_plan(args.fusion_plan, depth)
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one amount")
    if args.fusion_keep is not None:
        total = fusion.total_to_keep(args.fusion_keep, patches)
        if args.fusion_strategy == "no" or not total:
            what = "under --fusion-strategy no" if total else f"of {counted(patches, 'patch', 'patches')}"
            raise ValueError(f"--fusion-keep {args.fusion_keep:g} fuses nothing {what}")
    else:
        total = args.fusion_total
    return fusion.plan(
        args.fusion_strategy,
        depth,
        args.fusion_layer,
        args.fusion_token,
        total=total,
        schedule=args.fusion_schedule,
    )


def _most(args: argparse.Namespace, depth: int, patches: int) -> str:
    """'; the largest --fusion-total here is 12' where flags give too large an amount; nothing for a written plan."""
    if args.fusion_plan is not None:
        return ""
    make_plan = partial(fusion.plan, args.fusion_strategy, depth, args.fusion_layer, schedule=args.fusion_schedule)
    if args.fusion_token:
        return f"; the largest --fusion-token here is {fusion.largest(lambda r: make_plan(tokens=r), patches)}"
    total = fusion.largest(lambda n: make_plan(total=n), patches)
    if args.fusion_total is not None:
        return f"; the largest --fusion-total here is {total}"
    return f"; the least --fusion-keep here is {(patches - total) / patches:.4g}"


def fusion_method(args: argparse.Namespace, plan: tuple[int, ...]) -> fusion.Method:
    """How tokens fuse, as flags ask for; ValueError for choices without effect, as all are where nothing fuses."""
    method = fusion.Method(**{name: getattr(args, f"fusion_{name}") for name in fusion.CHOICES})
    if method != fusion.Method() and not any(plan):
        changed = next(name for name, choices in fusion.CHOICES.items() if getattr(method, name) != choices[0])
        raise ValueError(f"--fusion-{changed} {getattr(method, changed)} has no effect: no tokens fuse")
    return method


def start_from(model: VisionMamba, path: str, classes: list[str] | None = None) -> str:
    """Load the weights that --finetune names, ours or published; a head that doesn't fit stays as new.

    A model of grey images takes weights for coloured ones, summed over the channels.

    Args:
        model: Takes the weights.
        path: The file.
        classes: Names of the classes to learn. Where the file names its own, each class gets its own row of the head;
            where one of them isn't among the file's, the head is another.

    Returns:
        A line about what was loaded.

    Raises:
        ValueError: The file is no checkpoint, or it doesn't fit for other reasons than its head.
    """
    saved = checkpoint.load(path, "--finetune")
    weights = checkpoint_filter_fn(saved, model)
    if model.in_chans == 1 and PATCHES in weights and weights[PATCHES].ndim == 4:
        weights[PATCHES] = weights[PATCHES].sum(dim=1, keepdim=True)  # as timm does
    others = {key: value for key, value in weights.items() if not key.startswith("head.")}
    head = {key: value for key, value in weights.items() if key.startswith("head.")}
    if classes and saved.get("classes"):
        head = _head_for(classes, head, saved["classes"])
    new_head = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    fits = all(key in head and head[key].shape == value.shape for key, value in new_head.items())
    weights = others | (head if fits else new_head)
    checkpoint.check_fit(model, weights, f"--finetune {path}")
    model.load_state_dict(weights)
    return path if fits else f"{path}, with a new head for {counted(model.num_classes, 'class', 'classes')}"


def _head_for(classes: list[str], head: dict[str, Tensor], known: list[str]) -> dict[str, Tensor]:
    """The rows of a head for classes `known` that belong to `classes`; nothing where it lacks one."""
    if classes == known:
        return head
    rows = [known.index(name) for name in classes if name in known]
    complete = len(rows) == len(classes) and all(len(value) == len(known) for value in head.values())
    return {key: value[rows] for key, value in head.items()} if complete else {}


def check_teacher(args: argparse.Namespace) -> None:
    """ValueError, with the nearest names, for a teacher that there isn't."""
    if args.teacher_model:
        check_known("--teacher-model", args.teacher_model, list_models())


def build_teacher(args: argparse.Namespace, device: torch.device, classes: list[str] | None = None) -> nn.Module:
    """The trained model that flags name, timm's or ours, ready to teach on a device.

    Args:
        args: Flags of the teacher and of its images.
        device: Where it computes.
        classes: Names of the classes to learn, if they are known.

    Raises:
        ValueError: Its weights don't fit, it knows other classes, or it can't take such images.
    """
    ours = args.teacher_model in list_models(module="models_mamba")
    size = {"img_size": args.input_size} if ours else {}
    teacher = create_model(args.teacher_model, num_classes=args.nb_classes, **size)
    saved = checkpoint.load(args.teacher_path, "--teacher-path")
    if classes and saved.get("classes") not in (None, classes):
        known = f"knows the classes {shortened(saved['classes'])}, and the images are of {shortened(classes)}"
        raise ValueError(f"--teacher-path {args.teacher_path}: {known}")
    weights = checkpoint_filter_fn(saved, teacher) if ours else saved["model"]
    checkpoint.check_fit(teacher, weights, f"--teacher-path {args.teacher_path}")
    teacher.load_state_dict(weights)
    teacher.eval().requires_grad_(False).to(device)
    try:
        teacher(torch.zeros(1, 3, *args.input_size, device=device))
    except Exception as error:  # each model has its own way to refuse a size
        raise ValueError(f"--teacher-model {args.teacher_model}: no images of {args.input_size}: {error}") from error
    return teacher


# What --train-only leaves to learn, by the names of parameters.
TRAINED = {"all": "", "mixer": r"layers\.\d+\.mixer\.|head\.|pos_embed", "head": r"head\."}


def choose_trained(model: nn.Module, part: str) -> None:
    """Let only a part of the model learn: all, mixer (with head and position embedding), or head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(re.match(TRAINED[part], name)))


def restore(args: argparse.Namespace, saved: dict) -> VisionMamba:
    """The model of a checkpoint with its weights, for evaluation and without fusion.

    Args:
        args: As for build_model; without a model's name the checkpoint's own.
        saved: What checkpoint.load returned.

    Raises:
        ValueError: There is no name, or the checkpoint doesn't fit.
    """
    if not args.model:
        raise ValueError(f"--resume {args.resume}: doesn't say which model it is; name it with --model")
    head = saved["model"].get("head.weight")
    model = build_model(args, num_classes=0 if head is None else len(head))
    weights = checkpoint_filter_fn(saved, model)
    checkpoint.check_fit(model, weights, f"--resume {args.resume}")
    model.load_state_dict(weights)
    return model.eval()
