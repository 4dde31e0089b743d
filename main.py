"""Train or evaluate Vision Mamba with token fusion.

One process:       python main.py --recipe short --epochs 12
Two processes:     torchrun --nproc-per-node=2 main.py --model vim_nano_patch4_32 --data-set CIFAR --data-path datasets
Two machines:      torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 main.py ...
Fusing tokens:     python main.py --fusion-strategy upper --fusion-layer 3 --fusion-token 2
A checkpoint:      python main.py --eval --resume output/checkpoint.pth
Winning back:      python main.py --finetune a.pth --epochs 3 --warmup-epochs 0 --fusion-strategy all --fusion-token 2
"""

import argparse
import re
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from training.settings.command_line import parse_args
from training.settings.parser import check_known, fail

if __name__ == "__main__":
    parse_args()  # a wrong flag, or --help, is answered before PyTorch's import, which takes seconds

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.utils import random_seed
from torch.utils.data import Dataset, IterableDataset

import datasets
import fusion
import ssm
from engine import evaluate
from models_mamba import VisionMamba, checkpoint_filter_fn
from preflight import check, leaving_no_directory
from runner import Trainer, autocast_dtype, train
from training.build.model import build_model, check_model, check_teacher, choose_trained, fuse, start_from
from training.data.broken_images import SkipBroken
from training.data.classes import check_all_there, class_names
from training.data.loaders import shared_out, steps_per_epoch, test_loader
from training.records.console import describe_evaluation, device_name, print_overview, versions
from training.records.logbook import Logbook, make_directory, open_directory, write_scores
from training.records.tensorboard import check_wandb, follow_with_wandb
from training.runtime.distributed import (
    World,
    all_reduce,
    be_deterministic,
    init_world,
    launched,
    main_process_first,
    relaunch,
)
from training.runtime.progress import length
from training.settings.rates import scaled_rates
from training.state import checkpoint
from training.state.training_state import TrainingState, WeightAverage, changed_images, changed_settings
from training.step.sums import EpochSums


def main(argv: list[str] | None = None) -> None:
    with ExitStack() as held:
        train_or_evaluate(argv, held)


def train_or_evaluate(argv: list[str] | None, held: ExitStack) -> None:
    """Do what the command line says; what nobody else may use meanwhile is held."""
    args, saved = parse_args(argv), None
    try:
        if args.eval:
            saved = checkpoint.load(args.resume)
            args = parse_args(argv, settings=saved.get("settings", {}))
        check_names(args)
        if args.world_size > 1 and not launched():
            relaunch(args.world_size, args.dist_url)
        ssm.use_backend(args.scan_backend)
        fusion.use_backend("reference" if args.scan_backend == "reference" else "auto")
        random_seed(args.seed)  # the same weights on every process, and so the same averages of them
        model = new_model(args)
    except (ValueError, OSError) as error:
        fail(error)
    try:
        if args.deterministic:
            be_deterministic()
        world = init_world(args.device)
        check_scan(args, ssm.pick(world.device.type).name)
        keeps = args.output_dir and world.is_main
        keeps_log = keeps and not args.eval
        args.processes = world.size
        if args.resume and saved is None:
            saved = checkpoint.load(args.resume)
        if keeps_log:
            if args.check:
                held.enter_context(leaving_no_directory(Path(args.output_dir)))
            held.enter_context(open_directory(Path(args.output_dir), args.resume, args.auto_resume))
        elif keeps:
            make_directory(Path(args.output_dir))
        if args.auto_resume:
            args.resume, saved = checkpoint.newest(Path(args.output_dir))
        train_set, test_set, classes = build_data(args, world, saved)
        model.reset_classifier(args.nb_classes)
        args.flops = fusion.flops(model)
        args.weights = args.resume or (start_from(model, args.finetune, classes) if args.finetune else "new")
        if saved is not None:
            saved = fit_weights(saved, model, args)
            model.load_state_dict(saved["model"])
        model.to(world.device)
        trainer = None if args.eval else build_trainer(args, world, model, saved, train_set, test_set, classes)
        if trainer:
            check_same_start(trainer.state, world)
    except (ValueError, OSError) as error:
        fail(error, met_by="machine")

    place = trainer.place if trainer else ""
    print_overview(args, world, model, autocast_dtype(args, world), train_set, test_set, place)
    try:
        settings = vars(args) | versions() | {"hardware": device_name(world.device), "date": f"{date.today()}"}
        if trainer is None:
            scores = evaluate_checkpoint(args, world, model, saved, test_set)
            if keeps:
                write_scores(Path(args.output_dir), scores, settings)
        elif args.check:
            check(trainer)
        elif trainer.state.epoch >= args.last_epoch:
            if world.is_main:
                print(f"nothing left to train: the last epoch, {args.last_epoch - 1}, is done")
        else:
            if keeps_log and args.log_wandb:
                follow_with_wandb(args.wandb_project, settings)
            logbook = Logbook(Path(args.output_dir), settings, trainer.state.epoch) if keeps_log else None
            train(trainer, logbook)
    except (FloatingPointError, OSError) as error:
        fail(last_line(error), code=1, met_by="one")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        less = "a smaller --batch-size, with --grad-accum-steps, or --grad-checkpointing needs less"
        fail(f"{last_line(error)} ({less})", code=1, met_by="one")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the machine has too little memory: PyTorch has no kind of error for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def last_line(error: Exception) -> str:
    """What an error says, without the traceback that a loading process puts before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^[\w.]*Error: ", "", lines[-1])


def check_names(args: argparse.Namespace) -> None:
    """Find misspelt names before anything is built; ValueError with the nearest ones."""
    check_model(args.model)
    check_known("--opt", args.opt.lower(), list_optimizers())
    check_optimizer(args)
    check_teacher(args)
    datasets.check(args)
    if args.log_wandb:
        check_wandb()
    if args.skip_bad_images:
        datasets.check_indexed(args)


def check_scan(args: argparse.Namespace, backend: str) -> None:
    """Refuse what the chosen scan can't do; ValueError."""
    if args.compile and backend not in ("cpu", "triton"):
        raise ValueError(f"--compile: needs the C++ scan of CPUs or Triton's of GPUs, and the scan here is {backend}")
    if args.deterministic and backend == "cuda":
        raise ValueError("--deterministic: mamba-ssm sums gradients in any order; choose --scan-backend triton")


def check_optimizer(args: argparse.Namespace) -> None:
    """Refuse what timm's optimizers would meet only in their first step; ValueError."""
    info = get_optimizer_info(args.opt.lower())
    if info.second_order:
        raise ValueError(f"--opt {args.opt}: needs gradients of gradients, which training here doesn't make")
    betas = info.num_betas if info.has_betas else 0
    if args.opt_betas and len(args.opt_betas) != betas:
        raise ValueError(f"--opt-betas: --opt {args.opt} takes {betas or 'no'} betas, not {len(args.opt_betas)}")


def new_model(args: argparse.Namespace) -> VisionMamba:
    """The model that flags ask for, with its fusion and new weights."""
    model = build_model(args, drop_rate=args.drop, drop_path_rate=args.drop_path)
    model.set_scan_recompute(args.scan_recompute)
    model.set_grad_checkpointing(args.grad_checkpointing)
    model.set_random_order(args.if_random_cls_token_position, args.if_random_token_rank)
    args.token_counts = fuse(model, args)
    return model


def build_data(
    args: argparse.Namespace, world: World, saved: dict | None = None
) -> tuple[Dataset | None, Dataset, list[str] | None]:
    """Training images, unless they only evaluate, test images, and names of the classes; settles their number.

    Labels go by the checkpoint's names of classes, else by those of the training images. Only the main process may
    download.
    """
    args.download = args.download and world.is_main

    def build() -> tuple[Dataset | None, Dataset, list[str] | None]:
        train_set, classes = None, (saved or {}).get("classes")
        if not args.eval:
            train_set, args.nb_classes = datasets.build_dataset(True, args, classes)
            if classes and not args.resume_anyway:
                check_all_there(classes, train_set, f"--resume {args.resume}")
            classes = classes or class_names(train_set)
        test_set, args.nb_classes = datasets.build_dataset(False, args, classes)
        if args.skip_bad_images:
            return train_set and SkipBroken(train_set), SkipBroken(test_set), classes
        return train_set, test_set, classes

    return main_process_first(world, build)


def fit_weights(saved: dict, model: VisionMamba, args: argparse.Namespace) -> dict:
    """The checkpoint with its weights, and their average where it is wanted, as the model takes them.

    Raises:
        ValueError: They don't fit.
    """
    fitted = dict(saved)
    for entry in ("model", "model_ema") if args.model_ema else ("model",):
        if saved.get(entry) is not None:
            fitted[entry] = checkpoint_filter_fn(saved | {"model": saved[entry]}, model)
            checkpoint.check_fit(model, fitted[entry], f"--resume {args.resume}: its {entry}")
    return fitted


def build_trainer(
    args: argparse.Namespace,
    world: World,
    model: VisionMamba,
    saved: dict | None,
    train_set: Dataset,
    test_set: Dataset,
    classes: list[str] | None,
) -> Trainer:
    """The training that flags ask for, new or continued from a checkpoint."""
    choose_trained(model, args.train_only)
    state = build_state(args, world, model, saved, train_set, classes)
    return Trainer(args, world, state, train_set, test_set)


def build_state(
    args: argparse.Namespace,
    world: World,
    model: VisionMamba,
    saved: dict | None,
    train_set: Dataset,
    classes: list[str] | None = None,
) -> TrainingState:
    """What training changes, new or continued from a checkpoint."""
    args.global_batch = args.batch_size * args.grad_accum_steps * world.size
    rates = scaled_rates(args, args.global_batch)
    args.scaled_lr = rates.lr
    optimizer = build_optimizer(args, model)
    args.updates_per_epoch = steps_per_epoch(train_set, args, world) if args.sched_on_updates else 0
    scheduler, args.last_epoch = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args) | {"min_lr": rates.min_lr, "warmup_lr": rates.warmup_lr},
        updates_per_epoch=args.updates_per_epoch,
    )
    state = TrainingState(
        model=model,
        ema=build_average(args, model) if args.model_ema else None,
        opt=args.opt.lower(),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(world.device.type) if autocast_dtype(args, world) == torch.float16 else None,
        settings=dict(vars(args)),
        classes=classes,
        images=0 if isinstance(train_set, IterableDataset) else length(train_set) or 0,
        updates_per_epoch=args.updates_per_epoch,
        epoch=args.start_epoch,
    )
    if saved is not None:
        try:
            state.load_state_dict(saved)
            changed = changed_settings(saved.get("settings", {}), vars(args)) + changed_images(saved, state.images)
            go_on(args, state, changed)
            check_steps(args, state, train_set, world)
        except ValueError as error:
            raise ValueError(f"--resume {args.resume}: {error}") from error
    elif state.epoch:
        scheduler.step(state.epoch)
    return state


def build_average(args: argparse.Namespace, model: VisionMamba) -> WeightAverage:
    """The moving average of the weights that flags ask for."""
    device = torch.device("cpu") if args.model_ema_force_cpu else None
    return WeightAverage(model, decay=args.model_ema_decay, device=device)


def check_same_start(state: TrainingState, world: World) -> None:
    """ValueError where processes would start at different steps, as where only some of them see a checkpoint."""
    start = [float(state.epoch), float(state.sums.steps)]
    if all_reduce(start, world, "MIN") != all_reduce(start, world, "MAX"):
        raise ValueError(
            "processes start at different steps: --output_dir and --resume must be the same files on every machine"
        )


def go_on(args: argparse.Namespace, state: TrainingState, changed: list[str]) -> None:
    """See that a continued run will end as if it had not been interrupted; ValueError where it can't."""
    if changed and not args.resume_anyway:
        raise ValueError(f"{', '.join(changed)}: weights would differ from those of one run; --resume-anyway allows it")
    if changed and state.sums.steps:
        state.sums = EpochSums()  # the batches that are left of the epoch are others now


def check_steps(args: argparse.Namespace, state: TrainingState, train_set: Dataset, world: World) -> None:
    """See that the epoch to go on with has the steps that are done; ValueError where it has fewer now."""
    if state.sums.steps and not isinstance(train_set, IterableDataset):
        steps = steps_per_epoch(train_set, args, world)
        if state.sums.steps > steps:
            raise ValueError(f"{state.sums.steps} steps of its epoch are done, which has {steps} now")


def build_optimizer(args: argparse.Namespace, model: VisionMamba) -> torch.optim.Optimizer:
    """The optimizer that flags ask for, which spares from weight decay what the model says."""
    own = {"betas": tuple(args.opt_betas)} if args.opt_betas else {}
    if get_optimizer_info(args.opt.lower()).opt_class in (torch.optim.Adam, torch.optim.AdamW):
        own["fused"] = True  # one pass over the weights instead of one for each of its terms
    try:
        return create_optimizer_v2(
            model,
            args.opt,
            lr=args.scaled_lr,
            weight_decay=args.weight_decay,
            momentum=args.momentum,
            eps=args.opt_eps,
            layer_decay=args.layer_decay,
            **own,
        )
    except Exception as error:  # each optimizer has its own ways to fail
        raise ValueError(f"--opt {args.opt}: {str(error) or type(error).__name__}") from error


def evaluate_checkpoint(
    args: argparse.Namespace, world: World, model: VisionMamba, saved: dict, test_set: Dataset
) -> dict[str, dict[str, float]]:
    """Evaluate a checkpoint's weights, and their average where it holds one; scores by what they are called."""
    loader, dtype = test_loader(test_set, args, world), autocast_dtype(args, world)
    classify = torch.compile(model, fullgraph=True) if args.compile else model
    scores = {}

    def report(name: str) -> None:
        found = evaluate(classify, loader, world, autocast=dtype, shared_out=shared_out(test_set, args), label=name)
        scores[name] = found
        if world.is_main:
            print(describe_evaluation(name, found))

    report("model")
    if args.model_ema and saved.get("model_ema") is not None:
        model.load_state_dict(saved["model_ema"])
        report("EMA")
    return scores


if __name__ == "__main__":
    main()
