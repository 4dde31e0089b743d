"""Pictures of where a trained model's tokens fuse, and how alike they are.

An image:        python visualize.py --resume output/checkpoint.pth --image cat.png --output_dir pictures
A test image:    python visualize.py --resume output/checkpoint.pth --data-set FMNIST --index 3 --output_dir pictures
Other fusion:    python visualize.py --resume output/checkpoint.pth --fusion-strategy all --fusion-token 4

Writes groups.png (what fused), similarity.png (how alike its tokens are), tokens.png (how many are left) and, without
--image, redundancy.png (how alike patches are over many test images). Model, data and fusion are those of the
checkpoint's run unless flags say otherwise.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import datasets
from fusion import pictures
from models_mamba import VisionMamba
from training.build.model import fuse, restore
from training.data import decoding
from training.settings.command_line import parse_over
from training.settings.flags import add_checkpoint_flags, add_data_flags, add_fusion_flags
from training.settings.parser import HelpFormatter, Parser, count, fail, path, positive
from training.state import checkpoint
from training.words import counted

PROGRAM = "visualize.py"
SHOW_FUSION = "to see what would fuse, give --fusion-strategy all --fusion-token 4 or the like"


def get_args_parser() -> argparse.ArgumentParser:
    """The parser of visualize.py."""
    parser = Parser(PROGRAM, description=__doc__.splitlines()[0], allow_abbrev=False, formatter_class=HelpFormatter)
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("pictures").add_argument
    add("--image", type=path, metavar="FILE", help="an image to look at; a test image of the data set if not given")
    add("--index", type=count, metavar="N", help="which test image, the first if not given")
    add("--layers", type=count, nargs="+", metavar="I", help="layers whose groups to draw; three depths if not given")
    add("--images", type=positive, metavar="N", help="test images to measure similarity over, 256 if not given")
    add("--output_dir", type=path, default="pictures", metavar="DIR", help="where the pictures go")
    add_fusion_flags(parser)
    add_data_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if args.image and (args.index is not None or args.images):
        parser.error("argument --image: is looked at instead of the data set, leave --index and --images out")
    try:
        saved = checkpoint.load(args.resume)
        args = parse_over(parser, argv, saved.get("settings", {}))
        model = restore(args, saved)
        fuse(model, args)
        test_set = None if args.image else build_test_set(args)
        layers = chosen_layers(args.layers, model)
        output_dir = Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        figures = pictures.draw_all(model, read_image(args, test_set), layers)
        if test_set is not None:
            figures["redundancy"] = pictures.draw_redundancy(redundancies(model, test_set, args.images or 256))
        for name, figure in figures.items():
            figure.savefig(output_dir / f"{name}.png", dpi=150)
            print(output_dir / f"{name}.png")
        if "groups" not in figures:
            print(f"no groups.png and tokens.png: {args.resume} fuses no tokens; {SHOW_FUSION}")
    except (ValueError, OSError) as error:
        fail(error, program=PROGRAM)


def build_test_set(args: argparse.Namespace) -> Dataset:
    """The test images; ValueError for a stream, of which none can be asked for."""
    datasets.check_indexed(args)
    return datasets.build_dataset(False, args)[0]


def chosen_layers(wanted: list[int] | None, model: VisionMamba) -> list[int]:
    """The layers to draw: three depths unless asked for; ValueError for one that isn't there."""
    last = len(model.layers) - 1
    if wanted and max(wanted) > last:
        raise ValueError(f"--layers {max(wanted)}: the model's layers are 0 to {last}")
    return wanted or pictures.three_depths(model)


def read_image(args: argparse.Namespace, test_set: Dataset | None) -> Tensor:
    """The image of --image or the test image --index, as the model takes it, [C, H, W]."""
    if test_set is not None:
        index = args.index or 0
        if index >= len(test_set):
            raise ValueError(f"--index {index}: the data set has {counted(len(test_set), 'test image')}")
        return test_set[index][0]
    try:
        return decoding.read_image(args.image, datasets.build_transform(False, args))
    except ValueError as error:
        raise ValueError(f"--image {error}") from None


def redundancies(model: VisionMamba, test_set: Dataset, images: int) -> Tensor:
    """How alike patches are in every layer, over test images spread evenly over the data set: [layers, images]."""
    spread = torch.linspace(0, len(test_set) - 1, min(images, len(test_set))).long().tolist()
    batches = DataLoader(Subset(test_set, spread), batch_size=32)
    return torch.cat([pictures.redundancies(pictures.traced(model, batch)) for batch, _ in batches], dim=1)


if __name__ == "__main__":
    main()
