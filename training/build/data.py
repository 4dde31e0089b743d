"""Build the data sets that settings ask for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from timm.data import RealLabelsImagenet
from torch.utils.data import Dataset, IterableDataset

import datasets
from training.data.broken_images import SkipBroken
from training.data.classes import check_all_there, class_names
from training.data.real_labels import check_real_labels
from training.data.sizes import at_train_sizes
from training.runtime.distributed import World, main_process_first
from training.runtime.progress import length
from training.settings.settings import Settings


@dataclass(frozen=True)
class Data:
    """Hold the images of a run and their classes.

    Attributes:
        train: Training images; None if a run only evaluates.
        test: Test images.
        classes: Names of the classes in the order of the labels, if they are known.
        num_classes: Number of classes that a model needs.
        real_labels: Makes the scorer of an evaluation by ImageNet's reassessed labels; None unless --real-labels.
    """

    train: Dataset | None
    test: Dataset
    classes: list[str] | None
    num_classes: int
    real_labels: Callable[[], RealLabelsImagenet] | None = None

    @property
    def num_images(self) -> int:
        """Return the number of training images; 0 for a stream."""
        return 0 if isinstance(self.train, IterableDataset) else length(self.train) or 0


def build_data(settings: Settings, world: World, saved: dict | None = None) -> Data:
    """Build the data sets; labels follow the checkpoint's class names if it has any, else those of the training images.

    Args:
        settings: With the image size settled. Only the main process downloads.
        world: This process among all.
        saved: The checkpoint to continue or to evaluate.

    Raises:
        ValueError, OSError: As in datasets.build_dataset.
        ValueError: The checkpoint has classes that the training images lack, or --real-labels doesn't fit the images.
    """
    settings = replace(settings, download=settings.download and world.is_main)

    def build() -> Data:
        train, classes = None, (saved or {}).get("classes")
        if not settings.eval:
            train, _ = datasets.build_dataset(True, settings, classes)
            if classes and not settings.resume_anyway:
                check_all_there(classes, train, f"--resume {settings.resume}")
            classes = classes or class_names(train)
            train = at_train_sizes(train, settings) if settings.train_img_sizes else train
        test, num_classes = datasets.build_dataset(False, settings, classes)
        real_labels = check_real_labels(settings.real_labels, test, classes) if settings.real_labels else None
        if settings.skip_bad_images:
            train, test = train and SkipBroken(train), SkipBroken(test)
        return Data(train, test, classes, num_classes, real_labels)

    return main_process_first(world, build)
