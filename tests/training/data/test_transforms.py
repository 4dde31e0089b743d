"""Transforms: sizes, crops, normalisation, and every flag of augmentation."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.models import get_pretrained_cfg
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    InterpolationMode,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
)

import datasets
import models_mamba  # noqa: F401, registers the models
from training.data import transforms
from training.data.transforms import build_transform
from training.settings.settings import Settings

RNG = np.random.default_rng(0)
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


pytestmark = pytest.mark.usefixtures("seeded")


def make_args(**changes):
    return Settings(**({"input_size": (32, 32)} | changes))


plain_args = partial(make_args, aa=None, color_jitter=0.0, reprob=0.0)


def find(transform, kind):
    return [step for step in transform.transforms if isinstance(step, kind)]


def varied(transform, image, draws=20):
    """How many different results a transform gives."""
    return len({transform(image).numpy().tobytes() for _ in range(draws)})


PHOTO = Image.fromarray(RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (16, 32), (33, 33), (48, 96), (96, 48), (224, 224)])
@pytest.mark.parametrize("native", [(8, 8), (32, 32), (28, 28), (200, 90), (90, 300), (500, 3)])
@pytest.mark.parametrize("is_train", [True, False])
def test_output_shape(size, native, is_train):
    transform = build_transform(is_train, make_args(input_size=size))
    image = transform(Image.new("RGB", native))
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32


def test_normalisation():
    image = build_transform(False, make_args())(Image.new("RGB", (32, 32), (255, 0, 51)))
    expected = (torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1) - MEAN) / STD
    torch.testing.assert_close(image, expected.expand_as(image))


def test_grey_images_have_one_channel():
    """Green counts most for brightness; normalised by the means over ImageNet's channels."""
    transform = build_transform(False, make_args(in_chans=1))
    green, blue = (transform(Image.new("RGB", (32, 32), colour)) for colour in ((0, 255, 0), (0, 0, 255)))
    brightness = torch.tensor([150, 29]) / 255  # ITU-R 601-2: 0.587 and 0.114
    expected = (brightness - MEAN.mean()) / STD.mean()
    torch.testing.assert_close(green, expected[0].expand(1, 32, 32))
    torch.testing.assert_close(blue, expected[1].expand(1, 32, 32))


@pytest.mark.parametrize("changes", [{}, {"ThreeAugment": True}, {"aa": None}, {"src": True}, {"input_size": (64, 64)}])
def test_grey_images_are_augmented(changes):
    transform = build_transform(True, make_args(in_chans=1, reprob=1.0, **changes))
    drawn = [transform(PHOTO) for _ in range(40)]
    assert {image.shape for image in drawn} == {(1, *changes.get("input_size", (32, 32)))}
    assert len({image.sum().item() for image in drawn}) == 40


@pytest.mark.parametrize(("size", "padding"), [((32, 32), (4, 4)), ((8, 8), (1, 1)), ((16, 32), (4, 2))])
def test_small_images_are_padded_and_shifted(size, padding, pixels):
    """Every draw is the whole image, moved by at most an eighth."""
    height, width = size
    array = RNG.integers(1, 256, (*size, 3), dtype=np.uint8)
    transform = build_transform(True, plain_args(input_size=size))
    padded = np.pad(array, ((padding[1],) * 2, (padding[0],) * 2, (0, 0)))
    seen = set()
    for _ in range(60):
        image = pixels(transform(Image.fromarray(array)))
        shifts = [
            (y, x)
            for y in range(2 * padding[1] + 1)
            for x in range(2 * padding[0] + 1)
            if (padded[y : y + height, x : x + width] == image).all()
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    assert {y for y, _ in seen} >= {0, 2 * padding[1]}
    assert len(seen) > 5


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_large_images_are_cropped_and_resized(size, pixels):
    marked = np.zeros((100, 100, 3), np.uint8)
    marked[40:60, 40:60] = 255
    transform = build_transform(True, plain_args(input_size=size))
    areas = [pixels(transform(Image.fromarray(marked))).mean() for _ in range(30)]
    assert max(areas) > 2 * 255 * 0.04  # zoomed in, as no shift could


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [
        ("DIGITS", False),
        ("digits", False),
        ("torch/mnist", False),
        ("torch/MNIST", False),
        ("torch/kmnist", False),
        ("torch/qmnist", False),
        ("tfds/emnist/letters", False),
        ("tfds/mnist:3.0.1", False),
        ("torch/fashion_mnist", True),
        ("FMNIST", True),
        ("CIFAR", True),
        ("IMNET", True),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_mirroring(name, mirrored, size, pixels):
    transform = build_transform(True, plain_args(data_set=name, input_size=size))
    assert [flip.p for flip in find(transform, RandomHorizontalFlip)] == ([0.5] if mirrored else [])
    array = np.zeros((*size, 3), np.uint8)
    array[:, size[1] // 2 :] = 255
    results = [pixels(transform(Image.fromarray(array))).astype(int) for _ in range(60)]
    flips = [image[:, 0].mean() > image[:, -1].mean() + 50 for image in results]
    assert any(flips) == mirrored


def test_evaluation_of_small_images_only_resizes(pixels):
    array = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = build_transform(False, make_args())(Image.fromarray(array))
    np.testing.assert_array_equal(pixels(image), array)
    transform = build_transform(False, make_args(input_size=(16, 32)))
    np.testing.assert_array_equal(pixels(transform(PHOTO)), np.asarray(PHOTO.resize((32, 16), Image.BICUBIC)))


@pytest.mark.parametrize(("ratio", "resized"), [(0.875, 256), (1.0, 224), (0.5, 448)])
def test_eval_crop_ratio(ratio, resized, pixels):
    transform = build_transform(False, make_args(input_size=(224, 224), eval_crop_ratio=ratio))
    image = transform(PHOTO)
    assert find(transform, Resize)[0].size == resized
    assert find(transform, Resize)[0].interpolation == InterpolationMode.BICUBIC
    expected = CenterCrop(224)(Resize(resized, InterpolationMode.BICUBIC)(PHOTO))
    np.testing.assert_array_equal(pixels(image), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("native", [(500, 375), (224, 224), (100, 301), (1023, 641)])
def test_evaluation_for_published_accuracy_is_timms(tmp_path, native, mode):
    """To the bit, from the file on: 224 pixels, a centre crop of 0.875, bicubic."""
    folder = tmp_path / "val" / "cat"
    folder.mkdir(parents=True)
    pixels = Image.fromarray(RNG.integers(0, 256, (*native[::-1], 3), dtype=np.uint8))
    pixels.convert(mode).save(folder / "a.jpeg")
    settings = make_args(data_set="IMNET", data_path=str(tmp_path), input_size=(224, 224))
    ours, _ = datasets.build_dataset(False, settings)[0][0]
    theirs = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=0.875)
    models = create_transform(
        **resolve_data_config(pretrained_cfg=get_pretrained_cfg("vim_tiny_patch16_224").to_dict())
    )
    for transform in (theirs, models):
        assert torch.equal(ours, transform(Image.open(folder / "a.jpeg").convert("RGB")))


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_wrong_eval_crop_ratio(ratio):
    with pytest.raises(ValueError, match="--eval-crop-ratio"):
        build_transform(False, make_args(eval_crop_ratio=ratio))


def test_color_jitter():
    image = Image.new("RGB", (32, 32), (90, 120, 150))
    plain = partial(plain_args, input_size=(64, 64))
    assert varied(build_transform(True, plain()), image) == 1
    transform = build_transform(True, plain(color_jitter=0.3))
    assert varied(transform, image) > 10
    assert find(transform, ColorJitter)[0].brightness == (0.7, 1.3)
    # timm leaves colours to the augmentation policy where there is one
    assert not find(build_transform(True, plain(color_jitter=0.3, aa="rand-m9")), ColorJitter)


@pytest.mark.parametrize("off", [None, "", "none", "None"])
def test_auto_augment(off):
    image = Image.new("RGB", (32, 32), (90, 120, 150))
    steps = {
        aa: [type(step).__name__ for step in build_transform(True, plain_args(aa=aa)).transforms]
        for aa in (off, "rand-m9-mstd0.5-inc1", "original", "augmix-m3")
    }
    assert not {"RandAugment", "AutoAugment", "AugMixAugment"} & set(steps[off])
    assert "RandAugment" in steps["rand-m9-mstd0.5-inc1"]
    assert "AutoAugment" in steps["original"]
    assert "AugMixAugment" in steps["augmix-m3"]
    transform = build_transform(True, plain_args(aa="rand-m9-mstd0.5-inc1", input_size=(64, 64)))
    assert varied(transform, image) > 5


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "rand-m0", "rand-m15-mmax15-inc1", "v0"])
def test_policies_at_full_strength(aa):
    """No draw may fail: these ask to keep 0 bits of an image now and then, which Pillow itself may refuse."""
    transform = build_transform(True, plain_args(aa=aa))
    for _ in range(2000 if "mstd" in aa else 200):
        transform(Image.new("RGB", (32, 32), (90, 120, 150)))


@pytest.mark.parametrize(("bits", "value"), [(-2, 0), (0, 0), (1, 128), (4, 0xA0), (8, 0xAB), (9, 0xAB)])
def test_posterize(bits, value):
    image = transforms.posterize(Image.new("RGB", (2, 2), (0xAB, 0xAB, 0xAB)), bits)
    assert np.unique(np.asarray(image)).tolist() == [value]


def test_three_augment():
    image = Image.new("RGB", (32, 32), (90, 120, 150))
    transform = build_transform(True, plain_args(ThreeAugment=True, aa="rand-m9", color_jitter=0.3))
    (policy,) = find(transform, AutoAugment)
    assert sorted(step.name for (step,) in policy.policy) == ["Desaturate", "GaussianBlurRand", "Solarize"]
    assert find(transform, ColorJitter)
    assert varied(transform, image) > 5


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 64)])
def test_simple_random_crop(size):
    """The shorter side fits, so of a wide image the crop is anywhere along the longer one, and never resized again."""
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    transform = build_transform(True, plain_args(src=True, input_size=size))
    crop = find(transform, RandomCrop)[0]
    assert (crop.padding, crop.padding_mode) == (4, "reflect")
    assert not find(transform, RandomResizedCropAndInterpolation)
    assert transform(Image.fromarray(ramp)).shape == (3, *size)
    assert varied(transform, Image.fromarray(ramp)) > 5


def test_random_erasing(pixels):
    image = Image.new("RGB", (64, 64), (90, 120, 150))
    args = partial(plain_args, input_size=(64, 64))
    assert not find(build_transform(True, args()), RandomErasing)
    erased = {mode: build_transform(True, args(reprob=1.0, remode=mode))(image) for mode in ("const", "rand", "pixel")}
    changed = {}
    for mode, result in erased.items():
        hole = result[:, (pixels(result) != (90, 120, 150)).any(-1)]
        assert hole.numel()
        changed[mode] = hole.unique(dim=1).shape[1]
        assert (hole == 0).all() == (mode == "const")
    assert changed["const"] == changed["rand"] == 1
    assert changed["pixel"] > 1


@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_random_erasing_probability(probability, pixels):
    transform = build_transform(True, plain_args(reprob=probability, input_size=(64, 64)))
    erased = sum(pixels(transform(Image.new("RGB", (64, 64)))).any() for _ in range(100))
    assert abs(erased / 100 - probability) < 0.15


def test_random_erasing_count():
    for count in (1, 4):
        erasing = find(build_transform(True, make_args(recount=count)), RandomErasing)[0]
        assert erasing.max_count == count


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_train_interpolation(size, pixels):
    """A lone bright line stays within range under bilinear and overshoots under bicubic interpolation."""
    array = np.full((8, 8, 3), 100, np.uint8)
    array[:, 4] = 200
    darkest = {}
    for name in ("bilinear", "bicubic", "random"):
        transform = build_transform(True, plain_args(input_size=size, train_interpolation=name))
        margin = size[0] // 8  # beyond the black padding of small images
        inner = [
            pixels(transform(Image.fromarray(array)))[margin:-margin, margin:-margin].min() < 99 for _ in range(40)
        ]
        darkest[name] = sum(inner)
    assert darkest["bilinear"] == 0
    assert darkest["bicubic"] > darkest["random"] > 0


@pytest.mark.parametrize(
    "changes", [{"aa": "nonsense"}, {"train_interpolation": "cubical"}, {"remode": "nonsense"}, {"aa": "rand-m9-q5"}]
)
def test_wrong_transform_flags(changes):
    (value,) = changes.values()
    with pytest.raises(ValueError, match=value):
        build_transform(True, make_args(**changes))


@pytest.mark.parametrize("size", [(24, 24), (64, 48)])
def test_no_aug_leaves_only_the_transform_of_evaluation(size):
    args = make_args(data_set="FOLDER", no_aug=True, reprob=1.0, input_size=size)
    image = Image.fromarray(RNG.integers(0, 256, (80, 70, 3), dtype=np.uint8))
    transform = build_transform(True, args)
    assert torch.equal(transform(image), transform(image))
    assert torch.equal(transform(image), build_transform(False, args)(image))


def test_what_is_turned_or_shifted_in_grey_images_is_filled_by_their_mean():
    """RandAugment's fill is what the mean over ImageNet is, in grey too."""
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    for channels in (3, 1):
        transform = build_transform(True, plain_args(in_chans=channels, aa="rand-m9-n1", input_size=(64, 64)))
        policy = next(step for step in transform.transforms if isinstance(step, RandAugment))
        policy.ops = [op for op in policy.ops if op.name == "Rotate"]
        for op in policy.ops:
            op.prob = 1.0
        darkest = min(transform(white).min().item() for _ in range(20))
        assert -0.2 < darkest < 0.2  # normalised: the mean is 0, black below -1.8
