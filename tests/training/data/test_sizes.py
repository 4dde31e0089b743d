"""Training images have the size of their epoch, in loading processes that live on too."""

import pytest
import torch

import datasets
from training.build.data import build_data
from training.data.loaders import augmented_images, start_epoch, train_loader
from training.runtime.distributed import World
from training.settings.settings import Settings

CPU = World(torch.device("cpu"), 0, 1)


def settings(**changes):
    quick = {"input_size": (8, 8), "batch_size": 16, "epochs": 4, "train_img_sizes": [4, 8], "num_workers": 0}
    return Settings(**(quick | changes))


def epoch_of(loader, epoch, steps=0):
    start_epoch(loader, epoch, steps, 0, 0)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_batches_have_the_size_of_their_epoch(workers, skip_bad_images, monkeypatch):
    monkeypatch.setattr("training.data.loaders.usable_workers", lambda wanted: wanted)
    chosen = settings(num_workers=workers, skip_bad_images=skip_bad_images)
    loader = train_loader(build_data(chosen, CPU).train, chosen, CPU)
    for epoch, side in enumerate((4, 4, 8, 8)):
        found = epoch_of(loader, epoch, steps=len(loader) - 3)
        assert [tuple(images.shape) for images, _ in found] == [(16, 3, side, side)] * 3
        assert augmented_images(loader, 2).shape == (2, 3, side, side)


def test_each_size_is_augmented_as_in_a_training_at_this_size():
    """The images of an epoch, and what is random in it, don't depend on the sizes of other epochs."""
    chosen = settings()
    growing = train_loader(build_data(chosen, CPU).train, chosen, CPU)
    for epoch, side in ((1, 4), (2, 8)):
        constant = settings(train_img_sizes=None, input_size=(side, side))
        expected = epoch_of(train_loader(datasets.build_dataset(True, constant)[0], constant, CPU), epoch)
        torch.testing.assert_close(epoch_of(growing, epoch), expected, rtol=0, atol=0)


def test_test_images_have_the_input_size():
    image, _ = build_data(settings(), CPU).test[0]
    assert image.shape == (3, 8, 8)


def test_large_images_are_cropped_at_random_to_the_size(images):
    chosen = settings(data_set="FOLDER", data_path=str(images), input_size=(64, 64), train_img_sizes=[40, 64])
    train = build_data(chosen, CPU).train
    kinds = [type(transform.transforms[0]).__name__ for transform in train.transforms]
    assert kinds == ["RandomResizedCropAndInterpolation"] * 2
    assert [train[0, stage][0].shape for stage in (0, 1)] == [(3, 40, 40), (3, 64, 64)]
