"""Turn an image into the tensor that a model takes: augmented by the flags for training, or for evaluation."""

import re
from collections.abc import Callable
from statistics import fmean
from typing import Any

from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import NAME_TO_OP
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Compose, Grayscale, Normalize, RandomChoice, RandomCrop, Resize, ToTensor

from training.settings.settings import Settings

SMALL = 32  # images up to this many pixels are padded and shifted: a random resized crop would leave too little
NEVER_MIRRORED = {"digits", "mnist", "kmnist", "qmnist", "emnist", "svhn", "svhn_cropped"}  # a mirrored 2 is no digit


def build_transform(is_train: bool, settings: Settings) -> Compose:
    """Build the transform of an RGB image of any size into a tensor [C, H, W], for training or for evaluation.

    `settings.color_jitter` has an effect only if `settings.aa` is off or `settings.ThreeAugment` is on, and
    `settings.eval_crop_ratio` only above 32 pixels.

    Args:
        is_train: True to augment, unless `settings.no_aug` is set; False to evaluate.
        settings: All settings; `settings.input_size` must be known.

    Raises:
        ValueError: `settings.eval_crop_ratio` is out of range, or timm does not understand a flag.
    """
    if not 0 < settings.eval_crop_ratio <= 1:
        raise ValueError(f"--eval-crop-ratio {settings.eval_crop_ratio}: must be above 0 and at most 1")
    transform = _augment(settings) if is_train and not settings.no_aug else _resize_alone(settings)
    return _grey(transform) if settings.in_chans == 1 else transform


def _grey(transform: Compose) -> Compose:
    """Remove the colour after augmentation, which works on colour images only."""
    steps = list(transform.transforms)
    as_tensor, normalise = (
        next(i for i, step in enumerate(steps) if isinstance(step, kind)) for kind in (ToTensor, Normalize)
    )
    steps[normalise] = Normalize(*normalisation(1))
    steps.insert(as_tensor, Grayscale())
    return Compose(steps)


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel that normalise images.

    They are ImageNet's, and for grey images their averages over the channels.
    """
    if channels == 1:
        return (fmean(IMAGENET_DEFAULT_MEAN),), (fmean(IMAGENET_DEFAULT_STD),)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def _resize_alone(settings: Settings) -> Compose:
    """Build the transform of evaluation: squeeze images into small sizes, crop at the centre for larger ones."""
    small = max(settings.input_size) <= SMALL
    crop = {"crop_mode": "squash", "crop_pct": 1.0} if small else {"crop_pct": settings.eval_crop_ratio}
    return create_transform(tuple(settings.input_size), interpolation="bicubic", **crop)


def _augment(settings: Settings) -> Compose:
    """Build the transform of training by the flags."""
    size = tuple(settings.input_size)
    policy = "3a" if settings.ThreeAugment else settings.aa
    mirrored = NEVER_MIRRORED.isdisjoint(re.split("[/:]", settings.data_set.lower()))
    try:
        transform = create_transform(
            size,
            is_training=True,
            hflip=0.5 if mirrored else 0.0,
            color_jitter=settings.color_jitter,
            auto_augment=None if policy in (None, "", "none", "None") else policy,
            interpolation=settings.train_interpolation,
            re_prob=settings.reprob,
            re_mode=settings.remode,
            re_count=settings.recount,
        )
    except (AssertionError, KeyError, ValueError) as error:
        flags = f"--aa {settings.aa} --train-interpolation {settings.train_interpolation} --remode {settings.remode}"
        raise ValueError(f"{flags}: timm does not understand one of these ({error!r})") from error
    if settings.src:
        transform.transforms[:1] = _simple_crop(size, settings.train_interpolation)
    elif max(size) <= SMALL:
        transform.transforms[:1] = _padded_crop(size, settings.train_interpolation)
    return transform


def _padded_crop(size: tuple[int, int], interpolation: str) -> list[Callable]:
    """Build the steps that resize to `size` and then shift by up to an eighth of it."""
    height, width = size
    return [_resize(size, interpolation), RandomCrop(size, padding=(width // 8, height // 8))]


def _simple_crop(size: tuple[int, int], interpolation: str) -> list[Callable]:
    """Build DeiT III's simple random crop (arXiv 2204.07118, section 3): resize the shorter side, pad by 4, crop."""
    return [_resize(max(size), interpolation), RandomCrop(size, padding=min(4, min(size) - 1), padding_mode="reflect")]


def _resize(size: int | tuple[int, int], interpolation: str) -> Callable:
    modes = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    return RandomChoice([Resize(size, str_to_interp_mode(mode)) for mode in modes])


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; 0 bits or fewer give a black image, 8 or more the image unchanged."""
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, min(bits_to_keep, 8))


# timm's default policies, including that of --aa, sometimes ask Pillow to posterize to 0 bits. Newer Pillow refuses
# with a ValueError, which would end the training, so timm's table of operations gets a posterize that allows it.
NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), posterize))
