"""Declare the flags of the data: which images, how they are loaded, and how they are augmented."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from training.settings.flag import flag
from training.settings.kinds import amount, count, data_set_name, number, path, positive, share


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Choose the images."""

    data_set: str = flag(
        "DIGITS",
        "CIFAR or CIFAR100, CIFAR10, IMNET, INAT, INAT19, FMNIST, DIGITS, FOLDER, torch/..., wds/..., tfds/...",
        data_set_name,
        metavar="NAME",
        follows="data_set",
        fixed=True,
        cost=True,
        shown=True,
    )
    data_path: str | None = flag(None, "directory of the images", path, metavar="DIR", follows="data_set", place=True)
    download: bool = flag(
        False, "download the data set into --data-path if it is missing (CIFAR and Fashion-MNIST)", compared=False
    )
    nb_classes: int | None = flag(
        None, "number of classes, if the data set can't tell", positive, metavar="N", follows="data_set"
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
        "centre crop of test images: share of the side that is kept; images of 32 pixels or fewer are not cropped",
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
        "loading processes of each training process; together at most one for each core",
        count,
        spelling="--num_workers",
        metavar="N",
        compared=False,
    )


@dataclass(frozen=True, kw_only=True)
class LoadingSettings(LoadingProcesses):
    """Choose how images are loaded."""

    TITLE: ClassVar[str | None] = "loading"

    skip_bad_images: bool = flag(False, "skip and count images that can't be read, instead of stopping at the first")
    pin_mem: bool = flag(True, "load batches into page-locked memory, from which a GPU copies faster", compared=False)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Choose how training images are augmented and mixed."""

    TITLE: ClassVar[str | None] = "augmentation"

    train_img_sizes: Sequence[int] | None = flag(
        None,
        "train on square images that grow from the first of these sizes to the last, each for as many epochs; "
        "evaluation is at --input-size",
        positive,
        metavar="PX",
        nargs="+",
        fixed=True,
        cost=True,
    )
    no_aug: bool = flag(False, "transform training images as test images, without augmentation")
    color_jitter: float = flag(
        0.3,
        "strength of random brightness, contrast and saturation; without effect under RandAugment",
        amount,
        metavar="S",
        unused_with="no_aug",
    )
    aa: str = flag(
        "rand-m9-mstd0.5-inc1",
        "RandAugment or AutoAugment policy, named as in timm, or none",
        metavar="POLICY",
        unused_with="no_aug",
    )
    ThreeAugment: bool = flag(
        False,
        "instead of --aa, DeiT III's 3-Augment: grey, solarized or blurred images, with --color-jitter",
        unused_with="no_aug",
    )
    src: bool = flag(
        False, "DeiT III's simple random crop: resize the shorter side, pad, then crop", unused_with="no_aug"
    )
    smoothing: float = flag(0.1, "label smoothing", share, metavar="S")
    train_interpolation: str = flag(
        "bicubic",
        "interpolation of training images when they are resized",
        choices=("random", "bilinear", "bicubic"),
        unused_with="no_aug",
    )
    repeated_aug: bool = flag(
        True,
        "repeated augmentation: an epoch draws a third of the images, three times each, augmented differently",
        fixed=True,
    )
    reprob: float = flag(0.25, "random erasing: probability for each image", share, metavar="P", unused_with="no_aug")
    remode: str = flag(
        "pixel",
        "fill erased parts with zeros, one random colour, or noise",
        choices=("const", "rand", "pixel"),
        unused_with="no_aug",
    )
    recount: int = flag(1, "parts of an image to erase", positive, metavar="N", unused_with="no_aug")
    mixup: float = flag(0.8, "mixup alpha, 0 for none", amount, metavar="A")
    cutmix: float = flag(1.0, "cutmix alpha, 0 for none", amount, metavar="A")
    cutmix_minmax: Sequence[float] | None = flag(
        None,
        "draw the side of cutmix's box between these shares of the image's, instead of by alpha",
        share,
        metavar=("MIN", "MAX"),
        nargs=2,
    )
    mixup_prob: float = flag(1.0, "probability of mixing at all", share, metavar="P")
    mixup_switch_prob: float = flag(0.5, "probability of cutmix if mixup and cutmix are both on", share, metavar="P")
    mixup_mode: str = flag(
        "batch", "draw one mixture for each batch, pair of images, or image", choices=("batch", "pair", "elem")
    )

    @property
    def mixed(self) -> bool:
        """Return whether mixup or cutmix mixes training images, so that targets are probabilities."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None
