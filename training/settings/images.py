"""Declare the flags of the data: which images, how they are loaded, and how they are augmented."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from training.settings.flag import flag
from training.settings.kinds import amount, count, number, path, positive, share


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Choose the images."""

    data_set: str = flag(
        "DIGITS",
        "CIFAR or CIFAR100, CIFAR10, IMNET, INAT, INAT19, FMNIST, DIGITS, FOLDER, torch/..., wds/..., tfds/...",
        metavar="NAME",
        follows="data_set",
        fixed=True,
        cost=True,
        shown=True,
    )
    data_path: str | None = flag(None, "where the images are", path, metavar="DIR", follows="data_set", place=True)
    download: bool = flag(False, "fetch the data set if it is missing and can be fetched", compared=False)
    nb_classes: int | None = flag(
        None, "classes, where the data set can't tell", positive, metavar="N", follows="data_set"
    )
    inat_category: str = flag(
        "name",
        "iNaturalist's target: kingdom, phylum, class, order, supercategory, family, genus or name",
        choices=("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name"),
        metavar="LEVEL",
        follows="data_set",
    )


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Choose how test images are cropped."""

    eval_crop_ratio: float = flag(
        0.875,
        "share of the resized test image that is kept, above 32 pixels",
        number(float, 0, 1, above=True),
        metavar="S",
        follows="data_set",
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings(CropSettings, DataChoice):
    """Choose the images, and how test images are cropped."""

    TITLE: ClassVar[str | None] = "data"


@dataclass(frozen=True, kw_only=True)
class LoadingProcesses:
    """Choose how many processes load images."""

    TITLE: ClassVar[str | None] = "loading"

    num_workers: int = flag(
        10,
        "processes that load images, for each process that trains; together at most one for each core is started",
        count,
        spelling="--num_workers",
        metavar="N",
        compared=False,
    )


@dataclass(frozen=True, kw_only=True)
class LoadingSettings(LoadingProcesses):
    """Choose how images are loaded."""

    TITLE: ClassVar[str | None] = "loading"

    skip_bad_images: bool = flag(
        False, "pass over images that can't be read, and count them, instead of stopping with the file's name"
    )
    pin_mem: bool = flag(True, "page-locked batches, which reach a GPU faster", compared=False)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Choose how training images are augmented and mixed."""

    TITLE: ClassVar[str | None] = "augmentation"

    no_aug: bool = flag(False, "transform training images as in evaluation")
    color_jitter: float = flag(
        0.3,
        "strength of random brightness, contrast and saturation; RandAugment replaces it",
        amount,
        metavar="S",
        unused_with="no_aug",
    )
    aa: str = flag(
        "rand-m9-mstd0.5-inc1", "AutoAugment policy in timm's words, or none", metavar="POLICY", unused_with="no_aug"
    )
    ThreeAugment: bool = flag(
        False, "DeiT III's instead of --aa: grey, solarized or blurred, and --color-jitter", unused_with="no_aug"
    )
    src: bool = flag(False, "DeiT III's simple random crop: resize the shorter side, pad, crop", unused_with="no_aug")
    smoothing: float = flag(0.1, "label smoothing", share, metavar="S")
    train_interpolation: str = flag(
        "bicubic", "how training images are resized", choices=("random", "bilinear", "bicubic"), unused_with="no_aug"
    )
    repeated_aug: bool = flag(
        True, "draw each image of an epoch three times, augmented differently, and a third as many images", fixed=True
    )
    reprob: float = flag(0.25, "how often a part of the image is erased", share, metavar="P", unused_with="no_aug")
    remode: str = flag(
        "pixel",
        "erase with zeros, one random colour, or noise",
        choices=("const", "rand", "pixel"),
        unused_with="no_aug",
    )
    recount: int = flag(1, "parts to erase", positive, metavar="N", unused_with="no_aug")
    mixup: float = flag(0.8, "mixup alpha, 0 for none", amount, metavar="A")
    cutmix: float = flag(1.0, "cutmix alpha, 0 for none", amount, metavar="A")
    cutmix_minmax: Sequence[float] | None = flag(
        None, "bounds of the cutmix box's side instead of alpha", share, metavar=("MIN", "MAX"), nargs=2
    )
    mixup_prob: float = flag(1.0, "how often a batch is mixed at all", share, metavar="P")
    mixup_switch_prob: float = flag(0.5, "how often by cutmix, where both are on", share, metavar="P")
    mixup_mode: str = flag(
        "batch", "one mixture for the batch, each pair or each image", choices=("batch", "pair", "elem")
    )

    @property
    def mixed(self) -> bool:
        """Return whether mixup or cutmix mixes training images, so that targets are probabilities."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None
