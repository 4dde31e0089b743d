"""Search for the plan of fusion that changes a trained model least at a given cost, without training.

    python scripts/search_plan.py --resume output/checkpoint.pth --cost 0.7 --output_dir output/search

Measures how far plans move the model's logits from those without fusion, as KL divergence on training images: first for
each layer and amount alone, then for whole plans, by annealing. Prints the plan for --fusion-plan and its tokens beside
those of the strategies, then a table of all on test images, which the search never saw. Lower and upper get the layer K
of least divergence on the same training images.

With --output_dir, search.json keeps what was measured, so that the same command continues after an interruption;
plans.png shows the tokens in each layer.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import datasets
import fusion
from fusion.plan_pictures import blocks, draw_plans
from fusion.search import Plan, amounts, search
from scripts.under_plans import Divergence, Fused, kl
from training.build.fusion import fusion_method
from training.build.model import with_image_size
from training.build.weights import restore
from training.data.loaders import spread, usable_workers
from training.records.findings import Findings, interruptible
from training.records.logbook import make_directory
from training.records.tables import markdown
from training.runtime.distributed import init_world
from training.runtime.machine import device_name, versions
from training.runtime.progress import Progress
from training.settings.checkpoint import CheckpointSettings
from training.settings.failure import in_one_line, naming_flags
from training.settings.flag import flag, group_values
from training.settings.images import DataSettings, LoadingProcesses
from training.settings.kinds import count, number, path, positive
from training.settings.model import FusionMethodSettings
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.state import checkpoint

PROGRAM = "search_plan.py"
SEARCHED = "searched"


@dataclass(frozen=True, kw_only=True)
class SearchChoices:
    """Choose the cost, and how long and on which images to search."""

    TITLE: ClassVar[str | None] = "search"

    cost: float = flag(..., "share of the multiply-adds to leave", number(float, 0, 1, above=True), metavar="S")
    images: int = flag(256, "training images that the search measures plans on", positive, metavar="N")
    moves: int = flag(600, "moves of tokens between layers to try, whole plans measured", count, metavar="N")
    seed: int = flag(0, "what images and moves are drawn by", count, metavar="N")
    test_images: int | None = flag(
        None, "test images for the table, spread over the data set; all if not given", positive, metavar="N"
    )
    eval_batch_size: int = flag(64, "images in a forward pass", positive, metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME")
    output_dir: str | None = flag(
        None, "where search.json and plans.png go", path, spelling="--output_dir", metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class SearchSettings(LoadingProcesses, DataSettings, FusionMethodSettings, SearchChoices, CheckpointSettings):
    """Hold the settings of search_plan.py."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(SearchSettings, PROGRAM, __doc__.splitlines()[0])
    given = parser.read(argv)
    file = given.output_dir and Path(given.output_dir) / "search.json"
    with in_one_line(program=PROGRAM), interruptible(PROGRAM, file):
        saved = checkpoint.load(given.resume)
        settings = parse_over(parser, argv, saved.get("settings", {}))
        datasets.check_indexed(settings)
        device = init_world(settings.device).device
        model = restore(settings, saved).to(device)
        settings = with_image_size(settings, model)
        fused = Fused(model, fusion_method(settings))
        train, test = load_images(settings, saved.get("classes"))
        findings = open_findings(settings, file, fused)
        print(
            f"{settings.model}, {settings.data_set}, cost {settings.cost:g}, {sum(map(len, train))} training images, "
            f"seed {settings.seed}, {device_name(device)}"
        )
        plans, divergence = find_plans(settings, fused, train, findings)
        length = model.pos_embed.shape[1]
        print_plans(plans, length)
        rows = compare(plans, fused, divergence, test)
        print(f"\n{len(test.dataset):,} test images, which the search never saw:\n\n{markdown(rows)}")
        if file:
            findings.about["table"] = rows
            findings.write()
            notes = {name: f"cost {fused.cost(plan):.2f}" for name, plan in plans.items()}
            draw_plans(plans, length, notes).savefig(file.with_name("plans.png"), dpi=100)


def load_images(settings: SearchSettings, classes: list[str] | None) -> tuple[list[Tensor], DataLoader]:
    """Draw the training images of the search, in batches in memory, and build a loader of the test images."""
    train, _ = datasets.build_dataset(True, settings, classes, augment=False)
    test, _ = datasets.build_dataset(False, settings, classes)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))
    chosen = Subset(train, order[: settings.images].tolist())
    batches = [images for images, _ in DataLoader(chosen, settings.eval_batch_size)]
    workers = usable_workers(settings.num_workers)
    return batches, DataLoader(spread(test, settings.test_images), settings.eval_batch_size, num_workers=workers)


def open_findings(settings: SearchSettings, file: Path | None, fused: Fused) -> Findings:
    """Open what an earlier start of this search kept; raise ValueError if it is of another model or other images."""
    if file:
        make_directory(file.parent)
    findings = Findings(file)
    measured_on = {
        "sha256": checkpoint.sha256(settings.resume),
        **group_values(settings, "model"),
        **group_values(settings, "data_set"),
        "images": settings.images,
        "seed": settings.seed,
        "method": asdict(fused.method),
    }
    other = [name for name, value in measured_on.items() if findings.rows and findings.about.get(name) != value]
    if other and other[0] not in findings.about:
        raise ValueError(f"{file}: holds a search of an older version; choose another --output_dir")
    if other:
        raise ValueError(f"{file}: holds a search with another {other[0]}; choose another --output_dir")
    command = shlex.join(["python", *sys.argv])
    findings.about = {"command": command, "date": date.today().isoformat(), "versions": versions(), **measured_on}
    return findings


def find_plans(
    settings: SearchSettings, fused: Fused, batches: list[Tensor], findings: Findings
) -> tuple[dict[str, Plan], Divergence]:
    """Search, and return the plans to compare by name: no fusion, each strategy, and the one that was found."""
    strategies = dict(fused.strategies(settings.cost))
    alone = (fused.depth - 1) * len(amounts(fused.patches))
    divergence = Divergence(fused, batches, findings, alone + 2 * len(strategies) + settings.moves)
    with naming_flags({"budget": "--cost"}):
        found = search(
            divergence,
            fused.cost,
            settings.cost,
            fused.depth,
            fused.patches,
            starts=list(strategies.values()),
            seed=settings.seed,
            moves=settings.moves,
        )
    cells = [
        {"layer": str(layer), **{f"{r} tokens": f"{value:.3f}" for r, value in values.items()}}
        for layer, values in enumerate(found.alone)
    ]
    print(f"\nDivergence by tokens fused after one layer alone:\n\n{markdown(cells)}")
    plans = {"no": fused.none}
    for strategy in fusion.STRATEGIES:
        names = [name for name in strategies if name.partition(":")[0] == strategy]
        if names:
            name = min(names, key=lambda name: divergence(strategies[name]))
            plans[name] = strategies[name]
    return plans | {SEARCHED: found.plan}, divergence


def print_plans(plans: dict[str, Plan], length: int) -> None:
    """Print the tokens in each layer under each plan, and the flag of the plan that was found."""
    width = max(map(len, plans))
    print("\nTokens in each layer:\n")
    for name, plan in plans.items():
        print(f"{name:{width}}  {blocks(plan, length)}  {fusion.format_counts(fusion.token_counts(plan, length))}")
    print(f"\n--fusion-plan {','.join(map(str, plans[SEARCHED]))}")


def compare(plans: dict[str, Plan], fused: Fused, divergence: Divergence, test: DataLoader) -> list[dict[str, str]]:
    """Classify the test images under each plan, and return a row of counts for each."""
    right, moved = {name: [] for name in plans}, dict.fromkeys(plans, 0.0)
    for images, labels in Progress(test, "test images"):
        unfused = fused.logits(fused.none, [images])
        for name, plan in plans.items():
            found = fused.logits(plan, [images])
            right[name].append(found.argmax(dim=1) == labels)
            moved[name] += kl(unfused, found) * len(images)
    right = {name: torch.cat(parts) for name, parts in right.items()}
    images, best = len(right["no"]), right[SEARCHED]
    return [
        {
            "plan": name,
            "cost": f"{fused.cost(plan):.3f}",
            "KL, search": f"{divergence(plan):.3f}",
            "KL, test": f"{moved[name] / images:.3f}",
            "top-1 %": f"{100 * right[name].sum() / images:.2f}",
            "right": str(int(right[name].sum())),
            "it alone": str(int((right[name] & ~best).sum())),
            "searched alone": str(int((best & ~right[name]).sum())),
        }
        for name, plan in plans.items()
    ]


if __name__ == "__main__":
    main()
