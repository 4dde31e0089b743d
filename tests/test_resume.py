"""Interrupted and continued, a training ends with the very weights of one that was left alone."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
import runner as run_module
from tests.fashion import write_fashion
from tests.forked import Forked, main_py, together
from training.records.runs import read_log

ROOT = Path(__file__).parents[1]
# All that is random is on: augmentation, repeats, mixup, drop path; an average of the weights; a rate for each
# step, which takes two batches. An epoch has 12 steps.
FLAGS = (
    "--model vim_pico_patch2_8 --data-set FMNIST --batch-size 4 --grad-accum-steps 2 --drop-path 0.2 --drop 0.1"
    " --num_workers 1 --sched-on-updates"
).split()
EPOCHS = 3


def final(folder):
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    return {name: saved[name] for name in ("model", "model_ema", "ema_steps", "optimizer", "epoch", "best_acc1")}


def assert_same_end(folder, whole, processes=1):
    torch.testing.assert_close(final(folder), final(whole), rtol=0, atol=0)
    logs = [read_log(place / "log.txt") for place in (folder, whole)]
    for name in ("epoch", "lr", "test_acc1", "test_loss", "test_ema_loss", "skipped_steps"):
        assert [line[name] for line in logs[0]] == [line[name] for line in logs[1]], name
    for line, expected in zip(*logs, strict=True):  # of several processes, the main one keeps its part of the mean
        rel = 1e-9 if processes == 1 else 0.02
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=rel)
    assert not list(folder.glob(".*.tmp"))


def words(folder, *flags, epochs=EPOCHS):
    """The command line after main.py."""
    found = [*FLAGS, "--data-path", os.environ["IMAGES"], "--epochs", epochs, "--output_dir", folder, *flags]
    return [str(word) for word in found]


@pytest.fixture(scope="module", autouse=True)
def _images_and_one_thread(tmp_path_factory):
    """Many processes come and go here, and sums must not depend on how many cores are free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGES", str(write_fashion(tmp_path_factory.mktemp("images"), train=96, test=20, side=8)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def start(*args, **kwargs):
    """Start main.py in a process without an interpreter's start and imports."""
    return Forked(words(*args, **kwargs))


def launch(*args, launcher=()):
    """Start main.py as people do."""
    return subprocess.Popen(
        [sys.executable, *launcher, "main.py", *words(*args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def wait_for_steps(process):
    """Return when the process has said what it will run, which it does right before its first step."""
    assert any(line.startswith("output ") for line in process.stdout), "it ended before it began"


def wait_for_checkpoint(folder):
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pth").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_saved_where_it_stopped(folder, out, name):
    stopped = re.search(rf"{name}: stopped at epoch (\d+), step (\d+)", out)
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert [saved["epoch"], saved["sums"]["steps"]] == [int(number) for number in stopped.groups()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    finish(launch(folder))
    return folder


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [(1, 0), (1, 7), (0, 3), (2, 11)], ids=lambda stop: f"epoch{stop[0]}step{stop[1]}")
def test_any_step_is_a_place_to_go_on_from(whole, tmp_path, monkeypatch, stop):
    """In one process, so that the step is exact. Augmenting processes are started anew."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = words(tmp_path, "--save-steps", 1)
    save = run_module.save

    def save_and_stop(state, *args, **kwargs):
        save(state, *args, **kwargs)
        if (state.epoch, state.sums.steps) == stop:
            raise StopError

    try:
        monkeypatch.setattr(run_module, "save", save_and_stop)
        with pytest.raises(StopError):
            main.main(flags)
        monkeypatch.setattr(run_module, "save", save)
        main.main([*flags, "--auto-resume"])
    finally:
        torch.set_num_threads(threads)
    assert_same_end(tmp_path, whole)


# The images grow from epoch to epoch, each size with its own plan.
GROWING = (
    *("--train-img-sizes", 4, 6, 8),
    *("--fusion-strategy", "upper", "--fusion-layer", 3, "--fusion-keep", 0.5),
)


@pytest.fixture(scope="module")
def whole_growing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_growing")
    finish(start(folder, *GROWING))
    return folder


def test_growing_images_go_on_from_any_step(whole_growing, tmp_path):
    """Killed in the middle of a size and at the border of two."""
    for stop in ((0, 5), (1, 0), (1, 11)):
        finish(Forked([*map(str, stop), *words(tmp_path, *GROWING, "--save-steps", 1, "--auto-resume")], killed_at), -9)
        saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
        assert (saved["epoch"], saved["sums"]["steps"]) == stop
    finish(start(tmp_path, *GROWING, "--auto-resume"))
    assert_same_end(tmp_path, whole_growing)
    sizes = [line["image_size"] for line in read_log(tmp_path / "log.txt")]
    assert sizes == [4, 6, 8]


def killed_at(epoch, step, *flags):
    """Run main.py until it has saved after this step; the process then kills itself."""
    save = run_module.save

    def save_and_die(state, *args, **kwargs):
        save(state, *args, **kwargs)
        if (state.epoch, state.sums.steps) == (int(epoch), int(step)):
            os.kill(os.getpid(), signal.SIGKILL)

    run_module.save = save_and_die
    main_py(*flags)


@pytest.mark.parametrize(
    ("changed", "epochs", "complaint"),
    [
        (("--train-img-sizes", 4, 8), EPOCHS, "--train-img-sizes was [4, 6, 8] and is [4, 8]"),
        ((), 2 * EPOCHS, "the first epoch and the image size of each stage was ((0, 4), (1, 6), (2, 8)) and is"),
        (("--fusion-keep", 0.6), EPOCHS, "the fusion plan's tokens in each stage was "),
    ],
)
def test_the_schedule_of_sizes_stays(whole_growing, capsys, changed, epochs, complaint):
    with pytest.raises(SystemExit):
        main.main(words(whole_growing, "--auto-resume", *GROWING, *changed, epochs=epochs))
    assert complaint in capsys.readouterr().err


def test_killed_at_twenty_random_moments(whole, tmp_path):
    generator = random.Random(0)
    for _ in range(20):
        process = start(tmp_path, "--auto-resume", "--save-steps", 1)
        wait_for_steps(process)
        time.sleep(generator.uniform(0, 0.25))  # hardly any step, or a few: with all twenty, most of the training
        process.kill()
        process.wait()
        if (tmp_path / "checkpoint.pth").exists():
            torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    finish(start(tmp_path, "--auto-resume"))
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(whole, tmp_path, number):
    process = start(tmp_path, "--auto-resume")
    wait_for_steps(process)
    time.sleep(0.2)  # less than an epoch, after which it would save anyway
    process.send_signal(number)
    asked = time.monotonic()
    out = finish(process, code=128 + number)
    assert time.monotonic() - asked < 10
    assert_saved_where_it_stopped(tmp_path, out, number.name)
    assert "Traceback" not in out
    finish(start(tmp_path, "--auto-resume"))
    assert_same_end(tmp_path, whole)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TWO = ("--batch-size", 2, "--save-steps", 1)


def children(pid):
    """The processes that a process has started, by the rank that their environment names."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                environment = (status.parent / "environ").read_bytes().split(b"\0")
                ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
                found |= {rank: int(status.parent.name) for rank in ranks}
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_two")
    together(2, words(folder, *TWO))
    return folder


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")
def test_a_rank_that_dies_ends_the_job_which_then_goes_on(whole_two, tmp_path):
    process = launch(tmp_path, *TWO, "--auto-resume", launcher=TORCHRUN)
    wait_for_checkpoint(tmp_path)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    died = time.monotonic()
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert time.monotonic() - died < 40
    assert "Signal 9 (SIGKILL)" in out

    together(2, words(tmp_path, *TWO, "--auto-resume"))
    assert_same_end(tmp_path, whole_two, processes=2)


def test_torchrun_starts_the_processes_again(whole_two, tmp_path, monkeypatch):
    # Restarted processes would find the addresses of the dead ones in a store that all attempts share.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    process = launch(tmp_path, *TWO, "--auto-resume", launcher=(*TORCHRUN, "--max-restarts=1"))
    wait_for_checkpoint(tmp_path)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    finish(process)
    assert_same_end(tmp_path, whole_two, processes=2)


def test_a_signal_to_the_launcher_saves_too(whole_two, tmp_path):
    process = launch(tmp_path, *TWO[:2], "--auto-resume", launcher=TORCHRUN)
    wait_for_steps(process)
    time.sleep(0.2)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert_saved_where_it_stopped(tmp_path, out, "SIGTERM")
    together(2, words(tmp_path, *TWO[:2], "--auto-resume"))
    torch.testing.assert_close(final(tmp_path), final(whole_two), rtol=0, atol=0)


def with_small_files(size, *flags):
    """Run main.py where a file of more bytes is an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size),) * 2)
    main_py(*flags)


def test_a_full_disk_keeps_the_last_checkpoint(whole, tmp_path):
    finish(start(tmp_path, epochs=1))
    before = (tmp_path / "checkpoint.pth").read_bytes()
    flags = words(tmp_path, "--resume-anyway", "--auto-resume", "--save-steps", 1)
    out = finish(Forked([str(len(before) // 2), *flags], with_small_files), code=1)
    assert "File too large" in out.splitlines()[-1]
    assert (tmp_path / "checkpoint.pth").read_bytes() == before
    finish(start(tmp_path, "--auto-resume"))
    assert_same_end(tmp_path, whole)


def test_the_newest_good_checkpoint_is_taken(whole, tmp_path):
    finish(start(tmp_path, epochs=2))
    checkpoint = tmp_path / "checkpoint.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (tmp_path / ".checkpoint.pth.123.tmp").write_bytes(b"half of one")
    out = finish(start(tmp_path, "--auto-resume"))
    assert f"{tmp_path}/best_checkpoint.pth" in out
    assert_same_end(tmp_path, whole)
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        (tmp_path / name).write_bytes(b"nothing")
    assert "--auto-resume" in finish(start(tmp_path, "--auto-resume"), code=2)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (("--batch-size", 2), "--batch-size was 4 and is 2"),
        (("--seed", 5), "--seed was 0 and is 5"),
        (("--no-repeated-aug",), "--repeated-aug was True and is False"),
        (("--fusion-strategy", "all", "--fusion-token", 1), "the fusion plan's tokens was (17, 17"),
        (("--data-set", "DIGITS"), "--data-set was FMNIST and is DIGITS"),
    ],
)
def test_what_would_change_the_end_is_refused(whole, failing, changed, complaint):
    line = failing(main.main, words(whole, "--auto-resume", *changed, epochs=EPOCHS + 1))
    assert complaint in line
    assert "--resume-anyway" in line


def test_resume_anyway(whole, tmp_path):
    for name in ("checkpoint.pth", "log.txt"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    finish(start(tmp_path, "--auto-resume", "--resume-anyway", "--batch-size", 2, epochs=EPOCHS + 1))
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [*range(EPOCHS + 1)]


def test_accuracy_does_not_depend_on_the_number_of_processes(tmp_path):
    """360 test images in batches of 96 or 60, over 1, 2 and 3 processes."""
    digits = ["--data-set", "DIGITS", "--output_dir", str(tmp_path)]
    quick = "--epochs 1 --warmup-epochs 0 --lr 3e-3 --unscale-lr --batch-size 360 --no-aug --num_workers 0".split()
    finish(Forked([*digits, *quick]))
    evaluation = [*digits, "--eval", "--dist-eval", "--resume", str(tmp_path / "checkpoint.pth"), "--batch-size"]
    found = set()
    for processes, batch in ((1, 64), (2, 64), (3, 40)):
        out = together(processes, [*evaluation, str(batch)])
        found.add(tuple(line.split(", loss")[0] for line in out.splitlines() if "top-5" in line))
    assert len(found) == 1
    assert len(found.pop()) == 2


@pytest.mark.parametrize("flags", [(), ("--deterministic",)], ids=len)
def test_deterministic_asks_pytorch_for_it(flags, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which a run sets
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    try:
        main.main(words("", *flags, epochs=1))
        assert torch.are_deterministic_algorithms_enabled() == bool(flags)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before
