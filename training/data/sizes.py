"""Augment the images of a data set at the size of their epoch."""

from dataclasses import replace

from timm.data import ScheduledTransformDataset
from torch.utils.data import Dataset

from training.data.decoding import to_rgb
from training.data.transforms import build_transform
from training.settings.settings import Settings
from training.settings.stages import train_sizes


def at_train_sizes(dataset: Dataset, settings: Settings) -> Dataset:
    """Return a data set that takes the index of an image and the number of a stage, and augments at the stage's size.

    The stage comes with each index, so that loading processes change the size without being started anew.

    Args:
        dataset: Training images in any order, with an attribute for their transform.
        settings: With the input size settled.
    """
    transforms = [build_transform(True, replace(settings, input_size=size)) for size in train_sizes(settings)]
    dataset.transform = to_rgb
    return ScheduledTransformDataset(dataset, transforms)
