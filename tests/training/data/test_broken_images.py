"""--skip-bad-images: what can't be read is passed over, named and counted."""

import shutil

import pytest
import torch

import engine
import main
import runner as run_module
from tests.forked import together
from training.data.broken_images import SkipBroken, collate_readable
from training.records.runs import read_log
from training.runtime.distributed import World
from training.step.sums import EpochSums

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


def test_a_batch_without_any_image_is_passed_over(broken, tmp_path):
    """Batches of one: a step of each broken image is skipped, and its test batch left out."""
    run(broken, "--batch-size", 1, "--epochs", 1, "--num_workers", 0, "--output_dir", tmp_path / "out")
    (line,) = read_log(tmp_path / "out" / "log.txt")
    assert (line["skipped_images"], line["skipped_steps"]) == (2, 2)
    assert line["test_acc1"] in [pytest.approx(20 * right) for right in range(6)]  # of 5 that can be read


def test_a_short_last_test_batch_may_be_broken(broken, tmp_path):
    (broken / "val" / "bright" / "1.png").unlink()
    (broken / "val" / "dark" / "1.png").rename(broken / "val" / "dark" / "9.png")  # the fifth of batches of 2 x 1.5
    (broken / "val" / "bright" / "2.png").unlink()
    flags = ("--batch-size", 2, "--num_workers", 0, "--output_dir", tmp_path / "out")
    run(broken, *flags, "--epochs", 1)
    assert read_log(tmp_path / "out" / "log.txt")[0]["test_loss"] > 0
    run(broken, *flags[:4], "--check")


def test_a_check_takes_a_batch_that_can_be_read(broken, capsys):
    for i in range(8):
        if i != 5:
            (broken / "train" / "dark" / f"{i}.png").write_text("no image")
            (broken / "train" / "bright" / f"{i}.png").write_text("no image")
    run(broken, "--batch-size", 1, "--num_workers", 0, "--check")
    assert "everything works" in capsys.readouterr().out


def test_an_epoch_without_any_image_ends_the_run(broken, capfd):
    for path in (broken / "train").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(SystemExit) as exit_:
        run(broken, "--batch-size", 4, "--epochs", 1, "--num_workers", 0)
    assert exit_.value.code == 1
    assert "none of the epoch's 16 training images can be read" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interruption_loses_no_count(broken, tmp_path, monkeypatch, workers):
    """Interrupted after each step in turn, the run counts what it would have counted at once."""
    flags = ("--batch-size", 4, "--epochs", 1, "--num_workers", workers, "--save-steps", 1)
    save = run_module.save

    def save_and_stop(state, *args, **kwargs):
        save(state, *args, **kwargs)
        if state.sums.steps in stops:
            stops.remove(state.sums.steps)
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "save", save_and_stop)
    stops = [1, 2, 3]
    while stops:
        with pytest.raises(KeyboardInterrupt):
            run(broken, *flags, "--output_dir", tmp_path / "out", "--auto-resume")
    run(broken, *flags, "--output_dir", tmp_path / "out", "--auto-resume")
    assert [line["skipped_images"] for line in read_log(tmp_path / "out" / "log.txt")] == [2]


def test_images_weigh_the_same_whichever_process_has_them(broken, tmp_path):
    """Two processes, of which each misses others, end where one does that has all images."""
    for name in ("dark/1.png", "bright/5.png", "bright/6.png"):
        (broken / "train" / name).write_text("no image")
    plain = "--drop-path 0 --opt sgd --lr 0.05 --unscale-lr --warmup-epochs 0 --epochs 2 --num_workers 0".split()
    data = ["--data-set", "FOLDER", "--data-path", str(broken), *FLAGS, *plain]
    main.main([*data, "--batch-size", "8", "--output_dir", str(tmp_path / "one")])
    together(2, [*data, "--batch-size", "4", "--output_dir", str(tmp_path / "two")])
    one, two = (torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"] for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    for name in ("one", "two"):
        assert [line["skipped_images"] for line in read_log(tmp_path / name / "log.txt")] == [5, 5]


def test_processes_agree_to_skip_a_step(monkeypatch):
    """Of two processes with batches of 4, this one has 4, 3 and 4 images and the other 4, 1 and none."""
    others = iter([(4.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    monkeypatch.setattr(
        engine, "all_reduce", lambda mine, world: [a + b for a, b in zip(mine, next(others), strict=True)]
    )
    batches = [(torch.zeros(count, 3, 8, 8), torch.zeros(count)) for count in (4, 3, 4)]
    sums, after = EpochSums(), []
    world = World(torch.device("cpu"), 0, 2)
    found = [
        (len(images), weight)
        for images, _, weight in engine._weighed(batches, 4, world, sums, lambda: after.append(sums.steps))
    ]
    assert found == [(4, 1.0), (3, 1.5)]
    assert (sums.broken, sums.skipped, sums.bad, after) == (8, 1, 0, [1])


def test_a_stream_reads_its_images_itself(failing):
    flags = ["--data-set", "wds/any", "--data-path", ".", "--nb-classes", "2", "--skip-bad-images"]
    assert "--data-set wds/any: is a stream" in failing(main.main, flags)


class Images:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise OSError("1 is broken")
        return torch.full((2,), float(index)), index


def test_batches_hold_what_can_be_read():
    images = SkipBroken(Images())
    pixels, labels = collate_readable([images[i] for i in range(3)])
    assert labels.tolist() == [0, 2]
    assert pixels.tolist() == [[0, 0], [2, 2]]


def test_a_batch_may_hold_nothing():
    images, labels = collate_readable([None, None])
    assert (len(images), len(labels), labels.dtype) == (0, 0, torch.int64)
