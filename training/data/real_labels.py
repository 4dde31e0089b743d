"""Score predictions by ImageNet's reassessed labels (ReaL, arXiv 2006.07159): several, one or none for each image."""

import json
import os
from collections.abc import Callable
from functools import partial
from itertools import chain

from timm.data import RealLabelsImagenet
from torch.utils.data import Dataset

from training.words import counted

NAME = "ILSVRC2012_val_{:08d}.JPEG"  # of a validation image, by its number from 1


def check_real_labels(path: str, dataset: Dataset, classes: list[str] | None) -> Callable[[], RealLabelsImagenet]:
    """Check that the file of --real-labels fits a test set, and return what makes the scorer of one evaluation.

    The scorer takes the logits of all images in the data set's order.

    Args:
        path: JSON as its authors publish it: a list of labels for each validation image, by the image's number.
        dataset: ImageNet's validation images in one folder for each class.
        classes: Names of the model's classes in the order of its logits, if they are known.

    Raises:
        ValueError: The file can't be read, or doesn't fit the images or the classes.
    """
    files = [os.path.basename(file) for file in _files(dataset)]
    try:
        labels = _read(path)
        _check_fit(labels, files, dataset.classes, classes)
    except ValueError as error:
        raise ValueError(f"--real-labels {path}: {error}") from None
    return partial(RealLabelsImagenet, files, path)


def _check_fit(labels: list, files: list[str], folders: list[str], classes: list[str] | None) -> None:
    known = {NAME.format(number) for number in range(1, len(labels) + 1)}
    strange = [file for file in files if file not in known]
    if len(files) != len(labels):
        there = counted(len(files), "test image")
        raise ValueError(f"has labels for {counted(len(labels), 'image')}, and the data set has {there}")
    if strange:
        raise ValueError(f"is for images {NAME.format(1)} and so on, and one of the test images is {strange[0]}")
    if classes not in (None, folders):
        raise ValueError("numbers classes in the order of the folders, and the checkpoint has another order")
    if len(folders) < 5:
        raise ValueError(f"is for top-5 among at least 5 classes, not {len(folders)}")


def _files(dataset: Dataset) -> list[str]:
    """Return the paths of a data set's images; raise ValueError if it isn't made of files."""
    images = getattr(dataset, "images", None)
    if images is None:
        images = [path for path, _ in getattr(dataset, "samples", ())]
    if not len(images) or not isinstance(images[0], str):
        raise ValueError("--real-labels: needs ImageNet's validation images in folders, --data-set IMNET")
    return images


def _read(path: str) -> list[list[int]]:
    try:
        with open(path) as file:
            labels = json.load(file)
    except OSError as error:
        raise ValueError(error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    are_lists = isinstance(labels, list) and all(isinstance(each, list) for each in labels)
    if not are_lists or not all(type(label) is int for label in chain(*labels)) or not any(labels):
        raise ValueError("is not a list with a list of labels for each image")
    return labels
