"""Classify images by a trained model: the most likely classes of each, by name, with their probabilities.

Images:          python predict.py --resume output/checkpoint.pth cat.jpg dog.png
Faster:          python predict.py --resume output/checkpoint.pth --fusion-strategy all --fusion-token 4 photos/*.jpg

Model, size and channels of the images, and fusion are those of the checkpoint's run unless flags say otherwise. A
checkpoint without names of classes gives their numbers. An image that can't be read is one line, and the others go on;
the exit code is then 1.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models_mamba import VisionMamba
from training.build.fusion import fuse
from training.build.model import with_image_size
from training.build.weights import restore
from training.data.decoding import read_image
from training.data.transforms import build_transform
from training.runtime.distributed import init_world
from training.runtime.randomness import seed_all
from training.settings.checkpoint import CheckpointSettings
from training.settings.failure import in_one_line
from training.settings.flag import flag
from training.settings.images import CropSettings
from training.settings.kinds import positive
from training.settings.model import FusionSettings
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.state import checkpoint

PROGRAM = "predict.py"


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(CropSettings):
    """Which images, how they are cut, and what to say of them."""

    TITLE: ClassVar[str | None] = "prediction"

    images: Sequence[str] = flag(..., "an image file", positional=True, nargs="+", metavar="IMAGE")
    topk: int = flag(5, "classes to name", positive, metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(FusionSettings, PredictionSettings, CheckpointSettings):
    """What predict.py can be told."""


def get_args_parser() -> Parser:
    """Make the parser of predict.py."""
    return Parser(PredictSettings, PROGRAM, __doc__.splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    given = parser.read(argv)
    with in_one_line(program=PROGRAM):
        saved = checkpoint.load(given.resume)
        run = saved.get("settings", {})
        settings = parse_over(parser, argv, run)
        model = restore(settings, saved)
        if not model.num_classes:
            raise ValueError(f"--resume {settings.resume}: has no head to classify with")
        settings = with_image_size(settings, model)
        fuse(model, settings)
        device = init_world(settings.device).device
    names = class_names(saved, model.num_classes)
    transform, unread = build_transform(False, settings), 0
    for path in settings.images:
        try:
            image = read_image(path, transform)
        except ValueError as error:
            unread += 1
            print(f"{PROGRAM}: error: {error}", file=sys.stderr, flush=True)
            continue
        chances = probabilities(model.to(device), image.to(device), to_probabilities(run))
        print(f"{path}: {describe(chances, names, settings.topk)}", flush=True)
    sys.exit(int(unread > 0))


def class_names(saved: dict, count: int) -> list[str]:
    """The names of a checkpoint's classes; numbers where it doesn't say them."""
    names = saved.get("classes") or []
    return [*names, *(f"class {number}" for number in range(len(names), count))]


def to_probabilities(run: dict) -> Callable[[Tensor], Tensor]:
    """What makes probabilities of the logits [classes] of a run's model: one for each class under --bce-loss."""
    return torch.sigmoid if run.get("bce_loss") else lambda logits: logits.softmax(dim=-1)


@torch.inference_mode()
def probabilities(model: VisionMamba, image: Tensor, to_probabilities: Callable[[Tensor], Tensor]) -> Tensor:
    """The probability of each class for an image [C, H, W]: [classes], on the CPU."""
    seed_all(0)  # random matching says the same every time
    return to_probabilities(model(image.unsqueeze(0))[0].float()).cpu()


def describe(chances: Tensor, names: list[str], count: int) -> str:
    """The most likely classes: dark 98.20 %, bright 1.80 %."""
    chosen = chances.topk(min(count, len(chances)))
    return ", ".join(
        f"{names[i]} {100 * chance:.2f} %"
        for chance, i in zip(chosen.values.tolist(), chosen.indices.tolist(), strict=True)
    )


if __name__ == "__main__":
    main()
