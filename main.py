"""Train or evaluate Vision Mamba with token fusion.

One process:       python main.py --recipe short --epochs 12
Two processes:     torchrun --nproc-per-node=2 main.py --model vim_nano_patch4_32 --data-set CIFAR --data-path datasets
Two machines:      torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 main.py ...
Fusing tokens:     python main.py --fusion-strategy upper --fusion-layer 3 --fusion-token 2
A checkpoint:      python main.py --eval --resume output/checkpoint.pth
Winning back:      python main.py --finetune a.pth --epochs 3 --warmup-epochs 0 --fusion-strategy all --fusion-token 2
"""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from training.runtime.process import prepare_process
from training.settings.command_line import parse_args
from training.settings.failure import check_known, in_one_line

if __name__ == "__main__":
    parse_args()  # answer --help or a wrong flag before importing PyTorch, which takes seconds
    prepare_process()

import torch
from timm.optim import list_optimizers
from timm.utils import random_seed

import datasets
import fusion
import ssm
from engine import evaluate
from fusion.backends import prepare
from fusion.injection import injected_plan
from models_mamba import VisionMamba
from preflight import check, leaving_no_directory
from runner import Trainer, rewind, train
from training.build.data import Data, build_data
from training.build.fusion import fuse
from training.build.model import check_model, check_scanned, new_model, with_image_size
from training.build.optimizer import check_optimizer
from training.build.stages import build_stages
from training.build.state import build_state, check_same_start, gather_facts
from training.build.teacher import check_teacher
from training.build.weights import fit_weights, start_from, start_of
from training.data.loaders import shared_out, test_loader, train_loader
from training.records.console import describe_evaluation, print_overview
from training.records.logbook import Logbook, make_directory, open_directory, write_scores
from training.records.tensorboard import check_wandb, follow_with_wandb
from training.runtime.distributed import World, be_deterministic, init_world, launched, relaunch
from training.runtime.precision import autocast_dtype
from training.runtime.running import in_one_line_while_running
from training.settings.facts import Facts
from training.settings.run import RunSettings
from training.settings.settings import Settings
from training.state import checkpoint


def main(argv: list[str] | None = None) -> None:
    with ExitStack() as held:  # holds the lock on the output directory
        with in_one_line():
            settings, saved = read_settings(argv)
            check_names(settings)
            if settings.world_size > 1 and not launched():
                relaunch(settings.world_size, settings.dist_url)
            ssm.use_backend(settings.scan_backend)
            fusion.use_backend("reference" if settings.scan_backend == "reference" else "auto")
            random_seed(settings.seed)  # the same weights on every process, and so the same average of them
            model = new_model(settings)
            build_stages(with_image_size(settings, model), model)  # a wrong size ends the run before data are read

        with in_one_line(met_by="machine"):
            world = start_process(settings)
            settings, saved = open_run(settings, saved, world, held)
            settings = with_image_size(settings, model)
            data = build_data(settings, world, saved)
            settings = replace(settings, nb_classes=data.num_classes)
            saved, weights = load_weights(model, settings, saved, data)
            check_scanned(model.to(world.device), settings)
            if any(injected_plan(model)):
                prepare(world.device.type)
            if settings.eval:
                trainer, facts = None, gather_facts(settings, world, model, weights)
            else:
                trainer, facts = build_trainer(settings, world, model, weights, saved, data)

        place = trainer.place if trainer else ""
        print_overview(settings, facts, world, model, data.train, data.test, place)
        with in_one_line_while_running():
            if trainer is None:
                evaluate_checkpoint(settings, facts, world, model, saved, data)
            elif settings.check:
                check(trainer)
            else:
                train_and_log(trainer)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def read_settings(argv: list[str] | None) -> tuple[Settings, dict | None]:
    """Parse the command line; for --eval, over the settings of the checkpoint's run, and return the checkpoint too."""
    settings = parse_args(argv)
    if not settings.eval:
        return settings, None
    path = settings.resume or start_of(settings).path
    saved = checkpoint.load(path, "--resume" if settings.resume else "--pretrained")
    return replace(parse_args(argv, run=saved.get("settings", {})), resume=path), saved


def check_names(settings: Settings) -> None:
    """Check names and flags before anything is built; raise ValueError, with the nearest names for a misspelt one."""
    check_model(settings)
    check_known("--opt", settings.opt.lower(), list_optimizers())
    check_optimizer(settings)
    check_teacher(settings)
    start_of(settings)
    datasets.check(settings)
    if settings.log_wandb:
        check_wandb()
    if settings.skip_bad_images or settings.train_img_sizes:
        datasets.check_indexed(settings)


def start_process(settings: RunSettings) -> World:
    """Join the other processes, if a launcher started several, and choose the device and the scan.

    Raises:
        ValueError: There is no such device, or the scan doesn't support what the flags ask for.
    """
    if settings.deterministic:
        be_deterministic()
    world = init_world(settings.device)
    check_scan(settings, ssm.pick(world.device.type).name)
    if settings.deterministic and settings.train_img_sizes and world.device.type == "cuda":
        raise ValueError("--deterministic: PyTorch resamples position embeddings, for --train-img-sizes, in any order")
    return world


def check_scan(settings: RunSettings, backend: str) -> None:
    """Raise ValueError if the chosen scan doesn't support --compile or --deterministic."""
    if settings.compile and backend not in ("cpu", "triton"):
        raise ValueError(f"--compile: needs the C++ scan of CPUs or Triton's of GPUs, and the scan here is {backend}")
    if settings.deterministic and backend == "cuda":
        raise ValueError("--deterministic: mamba-ssm sums gradients in any order; choose --scan-backend triton")


def open_run(settings: Settings, saved: dict | None, world: World, held: ExitStack) -> tuple[Settings, dict | None]:
    """Open the output directory, and read the checkpoint to continue, if any; the returned settings name it.

    A directory that is made here is removed at the end if nothing was written into it.

    Raises:
        ValueError: The directory holds another run, or the checkpoint can't be read.
    """
    if settings.resume and saved is None:
        saved = checkpoint.load(settings.resume)
    if settings.output_dir and world.is_main:
        output_dir = Path(settings.output_dir)
        held.enter_context(leaving_no_directory(output_dir))
        if settings.eval:
            make_directory(output_dir)
        else:
            held.enter_context(open_directory(output_dir, settings.resume, settings.auto_resume))
    if settings.auto_resume:
        path, saved = checkpoint.newest(Path(settings.output_dir))
        settings = replace(settings, resume=path)
    return settings, saved


def load_weights(model: VisionMamba, settings: Settings, saved: dict | None, data: Data) -> tuple[dict | None, str]:
    """Give the model a head for the classes, and the checkpoint's weights or those to start from, if there are any.

    Its fusion is put in again, because the head is a part of the multiply-adds that --fusion-cost shares out.

    Returns:
        The checkpoint, its weights fitted to the model, or None; and a line that says where the weights come from.

    Raises:
        ValueError: They don't fit.
    """
    model.reset_classifier(settings.nb_classes)
    fuse(model, settings)
    if saved is None:
        start = start_of(settings)
        return None, start_from(model, start, data.classes) if start else "new"
    saved = fit_weights(saved, model, settings)
    model.load_state_dict(saved["model"])
    return saved, settings.resume


def build_trainer(
    settings: Settings, world: World, model: VisionMamba, weights: str, saved: dict | None, data: Data
) -> tuple[Trainer, Facts]:
    """Build the training that settings ask for, new or resumed from a checkpoint, and gather its facts."""
    batches = train_loader(data.train, settings, world)
    stages = build_stages(settings, model)
    grown = stages if settings.train_img_sizes else ()
    state, facts = build_state(settings, world, model, weights, saved, data, batches, grown)
    check_same_start(state, world)
    return Trainer(settings, world, state, data, batches, facts.last_epoch, stages), facts


def train_and_log(trainer: Trainer) -> None:
    """Train the epochs that are left, and log them on the main process if the run has an output directory."""
    settings, world, state = trainer.settings, trainer.world, trainer.state
    if state.epoch >= trainer.last_epoch:
        if world.is_main:
            print(f"nothing left to train: the last epoch, {trainer.last_epoch - 1}, is done")
        return
    logbook = None
    if settings.output_dir and world.is_main:
        if settings.log_wandb:
            follow_with_wandb(settings.wandb_project, state.settings)
        if settings.resume and not settings.auto_resume:
            rewind(state, Path(settings.output_dir))
        logbook = Logbook(Path(settings.output_dir), state.settings, state.epoch)
    train(trainer, logbook)


def evaluate_checkpoint(
    settings: Settings, facts: Facts, world: World, model: VisionMamba, saved: dict, data: Data
) -> None:
    """Evaluate a checkpoint's weights and, under --model-ema, their average; write the scores into --output_dir."""
    loader, parts = test_loader(data.test, settings, world), shared_out(data.test, settings)
    classify = torch.compile(model, fullgraph=True) if settings.compile else model
    dtype, scores = autocast_dtype(settings, world), {}

    def report(name: str) -> None:
        real = data.real_labels and data.real_labels()
        scores[name] = evaluate(classify, loader, world, autocast=dtype, shared_out=parts, real_labels=real, label=name)
        if world.is_main:
            expected = len(data.test) if settings.skip_bad_images else scores[name]["images"]
            print(describe_evaluation(name, scores[name], expected))

    report("model")
    if settings.model_ema and saved.get("model_ema") is not None:
        model.load_state_dict(saved["model_ema"])
        report("EMA")
    if settings.output_dir and world.is_main:
        write_scores(Path(settings.output_dir), scores, asdict(settings) | asdict(facts))


if __name__ == "__main__":
    main()
