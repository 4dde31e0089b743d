"""ImageNet's reassessed labels: which count as right, and files that don't fit."""

import json

import pytest
import torch
from PIL import Image

import datasets
from training.data.real_labels import NAME, check_real_labels
from training.settings.settings import Settings

CLASSES = ["n0", "n1", "n2", "n3", "n4", "n5"]


@pytest.fixture
def images(tmp_path):
    """Six validation images, the first in the last class, and so on."""
    for number, name in enumerate(reversed(CLASSES), start=1):
        folder = tmp_path / "images" / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / NAME.format(number))
    settings = Settings(data_set="IMNET", data_path=str(tmp_path / "images"), input_size=(8, 8))
    return datasets.build_dataset(False, settings)[0]


@pytest.fixture
def check(images, tmp_path):
    def call(labels, dataset=images, classes=None):
        path = tmp_path / "real.json"
        path.write_text(labels if isinstance(labels, str) else json.dumps(labels))
        return check_real_labels(str(path), dataset, classes)

    return call


def test_any_of_several_labels_is_right_and_images_without_one_do_not_count(check):
    """The data set's order is that of the folders, n0 with image 6 first; the file's is that of the images."""
    scorer = check([[5], [], [0, 3], [1], [4, 5], [2]])()
    logits = torch.zeros(6, 6)
    # Of n0 to n5, images 6 to 1: the most likely class, and then the four next to it, class 5 always last but one.
    for row, best in enumerate([2, 4, 3, 0, 1, 0]):
        logits[row] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
        logits[row, best] = 9.0
    scorer.add_result(logits[:4])
    scorer.add_result(logits[4:])
    # Image 6 right; 5 right (4 of 4, 5); 4 wrong (3 of 1); 3 right (0 of 0, 3); 2 without a label; 1 wrong (0 of 5).
    assert scorer.get_accuracy(1) == pytest.approx(100 * 3 / 5)
    assert scorer.get_accuracy(5) == pytest.approx(100 * 4 / 5)  # class 5 is not among the first five of image 1


def test_each_evaluation_has_a_scorer_of_its_own(check):
    make = check([[0]] * 6)
    first = make()
    first.add_result(torch.eye(6)[[0] * 6])
    second = make()
    second.add_result(torch.eye(6)[[1] * 6])
    assert (first.get_accuracy(1), second.get_accuracy(1)) == (100, 0)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([[0]] * 5, "has labels for 5 images, and the data set has 6 test images"),
        ([[]] * 6, "is not a list with a list of labels"),
        ({"0": [1]}, "is not a list with a list of labels"),
        ([0] * 6, "is not a list with a list of labels"),
        ([["a"]] * 6, "is not a list with a list of labels"),
        ([[True]] * 6, "is not a list with a list of labels"),
        ("[[0],", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("\0", "is not JSON"),
    ],
)
def test_files_that_do_not_fit(check, labels, complaint):
    with pytest.raises(ValueError, match=f"^--real-labels .*real.json: {complaint}") as error:
        check(labels)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing(images):
    with pytest.raises(ValueError, match="^--real-labels gone.json: No such file"):
        check_real_labels("gone.json", images, None)


def test_images_of_another_name(check, images):
    images.images[2] = "val/n2/cat.JPEG"
    with pytest.raises(ValueError, match=r"is for images ILSVRC2012_val_00000001.JPEG and so on, and .* is cat.JPEG"):
        check([[0]] * 6)


def test_classes_in_the_folders_order(check):
    check([[0]] * 6, classes=CLASSES)
    with pytest.raises(ValueError, match="the checkpoint has another order"):
        check([[0]] * 6, classes=CLASSES[::-1])


def test_images_that_are_no_files(check):
    digits, _ = datasets.build_dataset(False, Settings(input_size=(8, 8)))
    with pytest.raises(ValueError, match="--real-labels: needs ImageNet's validation images in folders"):
        check([[0]] * 6, dataset=digits)
