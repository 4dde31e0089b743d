"""Classify images by a trained model: the most likely classes of each, by name, with their probabilities.

Images:          python predict.py --resume output/checkpoint.pth cat.jpg dog.png
Faster:          python predict.py --resume output/checkpoint.pth --fusion-strategy all --fusion-token 4 photos/*.jpg

Flags override the model, the image size and channels, and the fusion of the checkpoint's run. If the checkpoint has no
class names, classes are shown by number. An image that can't be read gives one error line; the rest are still
classified, and the exit code is 1.
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
from training.settings.failure import in_one_line, tell
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
    """Say which images to classify, how to crop them, and how many classes to print."""

    TITLE: ClassVar[str | None] = "prediction"

    images: Sequence[str] = flag(..., "an image file", positional=True, nargs="+", metavar="IMAGE")
    topk: int = flag(5, "classes to name", positive, metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; a GPU if there is one", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(FusionSettings, PredictionSettings, CheckpointSettings):
    """Hold all settings of predict.py."""


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
        tell(settings.notes, PROGRAM)
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
    """Return the names of a checkpoint's classes, and 'class N' for those without a name."""
    names = saved.get("classes") or []
    return [*names, *(f"class {number}" for number in range(len(names), count))]


def to_probabilities(run: dict) -> Callable[[Tensor], Tensor]:
    """Return what makes probabilities of logits [classes]: a sigmoid for --bce-loss and --cosub, else softmax."""
    return torch.sigmoid if run.get("bce_loss") or run.get("cosub") else lambda logits: logits.softmax(dim=-1)


@torch.inference_mode()
def probabilities(model: VisionMamba, image: Tensor, to_probabilities: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the probability of each class for an image [C, H, W]: [classes], on the CPU."""
    seed_all(0)  # so that random matching gives the same result every time
    return to_probabilities(model(image.unsqueeze(0))[0].float()).cpu()


def describe(chances: Tensor, names: list[str], count: int) -> str:
    """Describe the `count` most likely classes: dark 98.20 %, bright 1.80 %."""
    chosen = chances.topk(min(count, len(chances)))
    return ", ".join(
        f"{names[i]} {100 * chance:.2f} %"
        for chance, i in zip(chosen.values.tolist(), chosen.indices.tolist(), strict=True)
    )


if __name__ == "__main__":
    main()
