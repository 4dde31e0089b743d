"""Classify images by a trained model: the most likely classes of each, by name, with their probabilities.

Images:          python predict.py --resume output/checkpoint.pth cat.jpg dog.png
Faster:          python predict.py --resume output/checkpoint.pth --fusion-strategy all --fusion-token 4 photos/*.jpg

Model, size and channels of the images, and fusion are those of the checkpoint's run unless flags say otherwise. A
checkpoint without names of classes gives their numbers. An image that can't be read is one line, and the others go on;
the exit code is then 1.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from models_mamba import VisionMamba
from training.build.model import fuse, restore
from training.data.decoding import read_image
from training.data.transforms import build_transform
from training.runtime.distributed import init_world
from training.runtime.randomness import seed_all
from training.settings.command_line import parse_over
from training.settings.flags import add_checkpoint_flags, add_crop_flag, add_fusion_flags
from training.settings.parser import HelpFormatter, Parser, fail, positive
from training.state import checkpoint

PROGRAM = "predict.py"


def get_args_parser() -> Parser:
    """The parser of predict.py."""
    parser = Parser(PROGRAM, description=__doc__.splitlines()[0], allow_abbrev=False, formatter_class=HelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("prediction").add_argument
    add("--topk", type=positive, default=5, metavar="N", help="classes to name")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N; a GPU if there is one")
    add_crop_flag(add)
    add_fusion_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        saved = checkpoint.load(args.resume)
        settings = saved.get("settings", {})
        args = parse_over(parser, argv, settings)
        model = restore(args, saved)
        if not model.num_classes:
            raise ValueError(f"--resume {args.resume}: has no head to classify with")
        fuse(model, args)
        device = init_world(args.device).device
    except (ValueError, OSError) as error:
        fail(error, program=PROGRAM)
    names = class_names(saved, model.num_classes)
    transform, unread = build_transform(False, args), 0
    for path in args.images:
        try:
            image = read_image(path, transform)
        except ValueError as error:
            unread += 1
            print(f"{PROGRAM}: error: {error}", file=sys.stderr, flush=True)
            continue
        chances = probabilities(model.to(device), image.to(device), to_probabilities(settings))
        print(f"{path}: {describe(chances, names, args.topk)}", flush=True)
    sys.exit(int(unread > 0))


def class_names(saved: dict, count: int) -> list[str]:
    """The names of a checkpoint's classes; numbers where it doesn't say them."""
    names = saved.get("classes") or []
    return [*names, *(f"class {number}" for number in range(len(names), count))]


def to_probabilities(settings: dict) -> Callable[[Tensor], Tensor]:
    """What makes probabilities of the logits [classes] of a run's model: one for each class under --bce-loss."""
    return torch.sigmoid if settings.get("bce_loss") else lambda logits: logits.softmax(dim=-1)


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
