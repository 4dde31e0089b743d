"""Draw where a trained model's tokens fuse, and how alike they are.

An image:        python visualize.py --resume output/checkpoint.pth --image cat.png --output_dir pictures
A test image:    python visualize.py --resume output/checkpoint.pth --data-set FMNIST --index 3 --output_dir pictures
Other fusion:    python visualize.py --resume output/checkpoint.pth --fusion-strategy all --fusion-token 4

Write groups.png (what fused), similarity.png (how alike tokens are), tokens.png (how many are left) and, without
--image, redundancy.png (how alike patches are over many test images). Flags override the model, data and fusion of the
checkpoint's run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import datasets
from fusion import pictures
from models_mamba import VisionMamba
from training.build.fusion import fuse
from training.build.model import with_image_size
from training.build.weights import restore
from training.data import decoding
from training.data.loaders import spread
from training.records.logbook import make_directory
from training.settings.checkpoint import CheckpointSettings
from training.settings.failure import in_one_line, tell
from training.settings.flag import flag
from training.settings.images import DataSettings
from training.settings.kinds import count, path, positive
from training.settings.model import FusionSettings
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.state import checkpoint
from training.words import counted

PROGRAM = "visualize.py"
SHOW_FUSION = "to see what would fuse, give --fusion-strategy all --fusion-token 4 or the like"


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """Say which pictures to draw, and where to write them."""

    TITLE: ClassVar[str | None] = "pictures"

    image: str | None = flag(
        None, "an image to look at; a test image of the data set if not given", path, metavar="FILE"
    )
    index: int | None = flag(None, "which test image, the first if not given", count, metavar="N")
    layers: Sequence[int] | None = flag(
        None, "layers whose groups to draw; three depths if not given", count, nargs="+", metavar="I"
    )
    images: int | None = flag(None, "test images to measure similarity over, 256 if not given", positive, metavar="N")
    output_dir: str = flag("pictures", "where the pictures go", path, spelling="--output_dir", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class VisualizeSettings(DataSettings, FusionSettings, PictureSettings, CheckpointSettings):
    """Hold all settings of visualize.py."""


def get_args_parser() -> Parser:
    """Make the parser of visualize.py."""
    return Parser(VisualizeSettings, PROGRAM, __doc__.splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    given = parser.read(argv)
    if given.image and (given.index is not None or given.images):
        parser.error("argument --image: is looked at instead of the data set, leave --index and --images out")
    with in_one_line(program=PROGRAM):
        saved = checkpoint.load(given.resume)
        settings = parse_over(parser, argv, saved.get("settings", {}))
        model = restore(settings, saved)
        settings = with_image_size(settings, model)
        fuse(model, settings)
        tell(settings.notes, PROGRAM)
        test_set = None if settings.image else build_test_set(settings)
        layers = chosen_layers(settings.layers, model)
        output_dir = Path(settings.output_dir)
        make_directory(output_dir)
        figures = pictures.draw_all(model, read_image(settings, test_set), layers)
        if test_set is not None:
            figures["redundancy"] = pictures.draw_redundancy(redundancies(model, test_set, settings.images or 256))
        for name, figure in figures.items():
            figure.savefig(output_dir / f"{name}.png", dpi=150)
            print(output_dir / f"{name}.png")
        if "groups" not in figures:
            print(f"no groups.png and tokens.png: {settings.resume} fuses no tokens; {SHOW_FUSION}")


def build_test_set(settings: VisualizeSettings) -> Dataset:
    """Build the data set of test images; raise ValueError for a stream, which has no image number N."""
    datasets.check_indexed(settings)
    return datasets.build_dataset(False, settings)[0]


def chosen_layers(wanted: Sequence[int] | None, model: VisionMamba) -> list[int]:
    """Return the layers to draw, three depths by default; raise ValueError for a layer that the model lacks."""
    last = len(model.layers) - 1
    if wanted and max(wanted) > last:
        raise ValueError(f"--layers {max(wanted)}: the model's layers are 0 to {last}")
    return wanted or pictures.three_depths(model)


def read_image(settings: VisualizeSettings, test_set: Dataset | None) -> Tensor:
    """Read the file of --image or the test image --index, as the model takes it: [C, H, W].

    Raises:
        ValueError: The file can't be read, or the data set has no such image.
    """
    if test_set is not None:
        index = settings.index or 0
        if index >= len(test_set):
            raise ValueError(f"--index {index}: the data set has {counted(len(test_set), 'test image')}")
        return test_set[index][0]
    try:
        return decoding.read_image(settings.image, datasets.build_transform(False, settings))
    except ValueError as error:
        raise ValueError(f"--image {error}") from None


def redundancies(model: VisionMamba, test_set: Dataset, images: int) -> Tensor:
    """Measure how alike patches are in every layer, for images spread evenly over the test set: [layers, images]."""
    batches = DataLoader(spread(test_set, images), batch_size=32)
    return torch.cat([pictures.redundancies(pictures.traced(model, batch)) for batch, _ in batches], dim=1)


if __name__ == "__main__":
    main()
