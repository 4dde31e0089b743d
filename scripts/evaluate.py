"""Evaluate trained models under plans of fusion: accuracy, speed, latency, multiply-adds and memory.

    python scripts/evaluate.py output/checkpoint.pth --plans no all:3 upper:6@0.9,0.8,0.7 0,0,4,...
    python scripts/evaluate.py output/*/checkpoint.pth --output_dir output/evaluation

Prints a table. With --output_dir also keeps it as evaluation.json and evaluation.csv, draws accuracy against cost into
evaluation.png, and measures only what evaluation.json lacks. Model, data and method of fusion are those of each
checkpoint's run unless flags say otherwise; so is the plan if none is given.

Accuracy is measured once. Times are medians over rounds in which all plans take turns, of a batch that is in memory.
Kept memory is what autograd keeps of this batch for a backward pass.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import datasets
import fusion
import ssm
from engine import evaluate
from fusion.words import GRAMMAR, NamedPlan, named_plans
from models_mamba import VisionMamba
from training.build.fusion import fusion_method, fusion_plan
from training.build.model import with_image_size
from training.build.weights import restore
from training.data.loaders import spread, usable_workers
from training.records import evaluations
from training.records.findings import Findings, interruptible
from training.records.logbook import make_directory
from training.records.tables import markdown
from training.runtime.distributed import World, init_world
from training.runtime.machine import device_name, versions
from training.runtime.memory import kept_mib
from training.runtime.progress import Progress
from training.settings.checkpoint import SavedModelChoice
from training.settings.failure import in_one_line
from training.settings.flag import flag, group_values
from training.settings.images import DataSettings, LoadingProcesses
from training.settings.kinds import count, path, positive
from training.settings.model import FusionMethodSettings, FusionPlanSettings
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.state import checkpoint

PROGRAM = "evaluate.py"
OWN = "own"


@dataclass(frozen=True, kw_only=True)
class EvaluationChoices:
    """Choose what is evaluated, and how it is measured."""

    TITLE: ClassVar[str | None] = "evaluation"

    checkpoints: Sequence[str] = flag(
        ..., "trained models, of any sizes", path, positional=True, nargs="+", metavar="CHECKPOINT"
    )
    plans: Sequence[str] = flag(
        (OWN,), f"own, that of the checkpoint's run; {GRAMMAR}; commas divide amounts", nargs="+", metavar="PLAN"
    )
    images: int | None = flag(None, "test images, spread over the data set; all if not given", positive, metavar="N")
    eval_batch_size: int = flag(64, "images in a forward pass", positive, metavar="N")
    rounds: int = flag(10, "times that all are timed in turn; 0 leaves times out", count, metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME")
    output_dir: str | None = flag(
        None, "where results are kept, and drawn", path, spelling="--output_dir", metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(LoadingProcesses, DataSettings, FusionMethodSettings, EvaluationChoices, SavedModelChoice):
    """Hold the settings of evaluate.py."""


@dataclass(frozen=True)
class Contender:
    """Hold a trained model and a plan for it.

    Attributes:
        model: The same for all plans of a checkpoint.
        method: How it fuses.
        batches: Its test images.
        known: What results depend on beside the plan.
    """

    model: VisionMamba
    plan: NamedPlan
    method: fusion.Method
    batches: DataLoader
    known: dict

    def fuse(self) -> None:
        fusion.inject(self.model, self.plan.plan, self.method)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(EvaluateSettings, PROGRAM, __doc__.splitlines()[0])
    given = parser.read(argv)
    output_dir = given.output_dir and Path(given.output_dir)
    file = output_dir and output_dir / "evaluation.json"
    with in_one_line(program=PROGRAM), interruptible(PROGRAM, file):
        world = init_world(given.device)
        contenders = build_contenders(parser, argv, given, world)
        if output_dir:
            make_directory(output_dir)
        findings = Findings(file)
        rows = [evaluated(contender, findings, world) for contender in contenders]
        place = {"device": device_name(world.device), "scan": ssm.pick(world.device.type).name}
        if not place.items() <= findings.about.items():  # times of another machine
            for row in findings.rows:
                row["seconds"] = []
        command = shlex.join(["python", *sys.argv])
        findings.about = {"command": command, "date": date.today().isoformat(), **place, "versions": versions()}
        time_in_turn(contenders, rows, given.rounds, findings, world)
        if not given.rounds:
            rows = [row | {"seconds": []} for row in rows]  # those of an earlier call, which not all rows have
        print(f"\nbatch {given.eval_batch_size}, fp32, {place['device']}, {place['scan']} scan\n")
        print(markdown(evaluations.cells(rows)))
        if output_dir:
            evaluations.write(output_dir, rows)


def build_contenders(parser: Parser, argv: list[str] | None, given: EvaluateSettings, world: World) -> list[Contender]:
    """Load the checkpoints and make their plans; print what doesn't fit one of them.

    Raises:
        ValueError: A checkpoint can't be read, or a plan fits none of them.
    """
    contenders, misfits, fitting = [], {word: [] for word in given.plans}, set()
    for file, name in zip(given.checkpoints, evaluations.short_names(given.checkpoints), strict=True):
        saved = checkpoint.load(file, "checkpoint")
        run = saved.get("settings", {})
        settings = parse_over(parser, argv, run, file)
        datasets.check_indexed(settings)
        model = restore(settings, saved, file).to(world.device)
        settings = with_image_size(settings, model)
        test_set, _ = datasets.build_dataset(False, settings, saved.get("classes"))
        workers = usable_workers(given.num_workers)
        batches = DataLoader(spread(test_set, given.images), given.eval_batch_size, num_workers=workers)
        method = fusion_method(settings)
        known = {
            "checkpoint": name,
            "sha256": checkpoint.sha256(file, "checkpoint"),
            **group_values(settings, "model"),
            **group_values(settings, "data_set"),
            "images": len(batches.dataset),
            "batch": min(given.eval_batch_size, len(batches.dataset)),
        }
        for word in given.plans:
            try:
                plans, unfit = own_plan(run, model, method, file) if word == OWN else named_plans(word, model, method)
            except ValueError as error:
                plans, unfit = [], [str(error)]
            contenders += [Contender(model, plan, method, batches, known) for plan in plans]
            misfits[word] += [line if len(given.checkpoints) == 1 else f"{line} ({name})" for line in unfit]
            fitting |= {word} if plans else set()
    for word, lines in misfits.items():
        if word not in fitting:
            raise ValueError(f"--plans {lines[0]}")
        for line in lines:
            print(f"left out: {line}")
    return contenders


def own_plan(run: dict, model: VisionMamba, method: fusion.Method, source: str) -> tuple[list[NamedPlan], list[str]]:
    """Return the plan of a checkpoint's run as named_plans does; raise ValueError if the run's settings make none."""
    settings = parse_over(Parser(FusionPlanSettings, PROGRAM, ""), [], run, source)
    return [NamedPlan(OWN, OWN, fusion_plan(settings, model, method))], []


def evaluated(contender: Contender, findings: Findings, world: World) -> dict:
    """Return a contender's row: the one that was kept, or a new one with everything but times."""
    contender.fuse()
    model, plan = contender.model, contender.plan
    method = asdict(contender.method) if any(plan.plan) else {}
    known = contender.known | {"plan": plan.name, "tokens": list(plan.plan), "method": method}
    row = findings.find(known)
    if row is None:
        scores = evaluate(model, contender.batches, world, label=f"{known['checkpoint']}, {plan.name}")
        images, labels = first_batch(contender, world)
        row = known | {
            "series": plan.series,
            "fused": sum(plan.plan),
            "left": model.pos_embed.shape[1] - sum(plan.plan),
            "mega_macs": fusion.flops(model) / 1e6,
            "cost": fusion.flops(model) / fusion.flops(model, (0,) * len(plan.plan)),
            "acc1": scores["acc1"],
            "acc5": scores["acc5"],
            "loss": scores["loss"],
            "kept_mib": kept_mib(model, lambda: F.cross_entropy(model(images), labels)),
            "seconds": [],
        }
        findings.rows.append(row)
        findings.write()
    return row


def time_in_turn(contenders: list[Contender], rows: list[dict], rounds: int, findings: Findings, world: World) -> None:
    """Time a batch and a single image of each contender, in rounds; those that all have done already count."""
    if not rounds:
        return
    done = min(len(row["seconds"]) for row in rows)
    for row in rows:
        del row["seconds"][done:]
    if done >= rounds:
        return
    turns = [
        (contender, row, first_batch(contender, world)[0]) for contender, row in zip(contenders, rows, strict=True)
    ]
    for turn in Progress(range(done, rounds + 1), "timing", done=done):  # the first warms up
        for contender, row, images in turns:
            contender.fuse()
            seconds = [time_forward(contender.model, some) for some in (images, images[:1])]
            if turn > done:
                row["seconds"].append(seconds)
        findings.write()


def first_batch(contender: Contender, world: World) -> list[Tensor]:
    """Return the first images and their labels, on the model's device."""
    images = DataLoader(contender.batches.dataset, contender.batches.batch_size)
    return [tensor.to(world.device) for tensor in next(iter(images))]


@torch.inference_mode()
def time_forward(model: VisionMamba, images: Tensor) -> float:
    """Return the seconds that a forward pass takes."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
