"""--skip-bad-images: what can't be read is passed over, named and counted."""

import shutil

import pytest
import torch

import main
from training.broken_images import SkipBroken, collate_readable
from training.distributed import World
from training.results import read_log

FLAGS = "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --no-model-ema --skip-bad-images".split()


@pytest.fixture
def broken(images, tmp_path):
    """The small folder with one training image cut and another one, and a test image, replaced by text."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    cut = data / "train" / "dark" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    for name in ("train/bright/2.png", "val/dark/1.png"):
        (data / name).write_text("no image")
    return data


def run(data, *flags):
    main.main(["--data-set", "FOLDER", "--data-path", str(data), *FLAGS, *map(str, flags)])


@pytest.mark.parametrize("workers", [0, 1])
def test_they_are_skipped_named_and_counted(broken, tmp_path, capfd, workers):
    run(broken, "--batch-size", 4, "--epochs", 2, "--num_workers", workers, "--output_dir", tmp_path / "out")
    captured = capfd.readouterr()
    assert [line["skipped_images"] for line in read_log(tmp_path / "out" / "log.txt")] == [2, 2]
    assert captured.out.count("2 broken images skipped") == 2
    skipped = [line for line in captured.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 6
    assert sum("train/dark/3.png" in line for line in skipped) == 2
    assert sum("train/bright/2.png" in line for line in skipped) == 2
    assert sum("val/dark/1.png" in line for line in skipped) == 2


def test_pictures_pass_over_them_uncounted(broken, tmp_path):
    first = broken / "val" / "bright" / "0.png"
    first.write_text("no image")
    flags = ("--batch-size", 4, "--epochs", 2, "--num_workers", 0, "--log-images", 1)
    run(broken, *flags, "--fusion-strategy", "all", "--fusion-token", 2, "--output_dir", tmp_path / "out")
    assert [line["skipped_images"] for line in read_log(tmp_path / "out" / "log.txt")] == [2, 2]


def test_a_batch_without_any_image_ends_the_run(broken, capfd):
    for path in (broken / "train").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(SystemExit) as exit_:
        run(broken, "--batch-size", 4, "--epochs", 1, "--num_workers", 0)
    assert exit_.value.code == 1
    assert "none of a batch's 4 images can be read" in capfd.readouterr().err.splitlines()[-1]


def test_a_stream_reads_its_images_itself(capsys):
    with pytest.raises(SystemExit):
        main.main(["--data-set", "wds/any", "--data-path", ".", "--nb-classes", "2", "--skip-bad-images"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data-set wds/any: is a stream" in line


class Images:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise OSError("1 is broken")
        return torch.full((2,), float(index)), index


def test_counts_are_of_the_time_since_they_were_taken():
    images, world = SkipBroken(Images()), World(torch.device("cpu"), 0, 1)
    assert [images[i] is None for i in (0, 1, 1, 2)] == [False, True, True, False]
    assert images.take_count(world) == 2
    assert images.take_count(world) == 0


def test_batches_hold_what_can_be_read():
    images = SkipBroken(Images())
    pixels, labels = collate_readable([images[i] for i in range(3)])
    assert labels.tolist() == [0, 2]
    assert pixels.tolist() == [[0, 0], [2, 2]]
