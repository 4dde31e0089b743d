"""Interrupted and continued, a training ends with the very weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
import runner as run_module
from tests.forked import Forked
from training.records.runs import read_log

ROOT = Path(__file__).parents[1]
# All that is random is on: augmentation, repeats, mixup, drop path; an average of the weights; a rate for each
# step, which takes two batches.
FLAGS = (
    "--model vim_pico_patch2_8 --data-set DIGITS --batch-size 32 --grad-accum-steps 2 --drop-path 0.2 --drop 0.1"
    " --num_workers 1 --sched-on-updates"
).split()


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


def command(folder, *flags, epochs=3, launcher=()):
    run = [sys.executable, *launcher, "main.py", *FLAGS, "--epochs", epochs, "--output_dir", folder, *flags]
    return [str(part) for part in run]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Many processes come and go here, and sums must not depend on how many cores are free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def start(*args, **kwargs):
    """Start main.py in a process without an interpreter's start and imports."""
    return Forked(command(*args, **kwargs)[2:])


def launch(*args, **kwargs):
    """Start main.py as people do."""
    return subprocess.Popen(
        command(*args, **kwargs),
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
    for line in process.stdout:
        if line.startswith("output "):
            return
    raise AssertionError("it ended before it began")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    finish(launch(folder))
    return folder


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [(1, 0), (1, 7), (0, 3), (2, 21)], ids=lambda stop: f"epoch{stop[0]}step{stop[1]}")
def test_any_step_is_a_place_to_go_on_from(whole, tmp_path, monkeypatch, stop):
    """In one process, so that the step is exact; 22 steps an epoch. Augmenting processes are started anew."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = command(tmp_path, "--save-steps", 1)[2:]
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


def test_killed_at_twenty_random_moments(whole, tmp_path):
    generator = random.Random(0)
    for _ in range(20):
        process = start(tmp_path, "--auto-resume", "--save-steps", 1)
        wait_for_steps(process)
        time.sleep(generator.uniform(0, 0.8))
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
    time.sleep(1)
    process.send_signal(number)
    asked = time.monotonic()
    out = finish(process, code=128 + number)
    assert time.monotonic() - asked < 10
    assert f"{number.name}: stopped at epoch" in out
    assert "Traceback" not in out
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert saved["epoch"] or saved["sums"]["steps"]
    finish(start(tmp_path, "--auto-resume"))
    assert_same_end(tmp_path, whole)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TWO = ("--batch-size", 32, "--save-steps", 1)


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
    finish(launch(folder, *TWO, launcher=TORCHRUN))
    return folder


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")
def test_a_rank_that_dies_ends_the_job_which_then_goes_on(whole_two, tmp_path):
    process = launch(tmp_path, *TWO, "--auto-resume", launcher=TORCHRUN)
    wait_for_steps(process)
    time.sleep(1)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    died = time.monotonic()
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert time.monotonic() - died < 40
    assert "Signal 9 (SIGKILL)" in out

    finish(launch(tmp_path, *TWO, "--auto-resume", launcher=TORCHRUN))
    assert_same_end(tmp_path, whole_two, processes=2)


def test_torchrun_starts_the_processes_again(whole_two, tmp_path, monkeypatch):
    # Restarted processes would find the addresses of the dead ones in a store that all attempts share.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    process = launch(tmp_path, *TWO, "--auto-resume", launcher=(*TORCHRUN, "--max-restarts=1"))
    wait_for_steps(process)
    time.sleep(1)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    finish(process)
    assert_same_end(tmp_path, whole_two, processes=2)


def test_a_signal_to_the_launcher_saves_too(whole_two, tmp_path):
    process = launch(tmp_path, *TWO[:2], "--auto-resume", launcher=TORCHRUN)
    wait_for_steps(process)
    time.sleep(1)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert "SIGTERM: stopped at epoch" in out
    finish(launch(tmp_path, *TWO[:2], "--auto-resume", launcher=TORCHRUN))
    torch.testing.assert_close(final(tmp_path), final(whole_two), rtol=0, atol=0)


def test_a_full_disk_keeps_the_last_checkpoint(whole, tmp_path):
    finish(start(tmp_path, epochs=1))
    before = (tmp_path / "checkpoint.pth").read_bytes()
    limit = f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)"
    program = f"{limit}; import sys, main; main.main(sys.argv[1:])"
    flags = command(tmp_path, "--resume-anyway", "--auto-resume", "--save-steps", 1)[2:]
    result = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr.splitlines()[-1]
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


@pytest.fixture
def fashion(tmp_path):
    """A folder with one image a class in files of Fashion-MNIST's kind and names, under fashion/."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    images, labels = torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10, dtype=torch.uint8)
    for name in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 0x08, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.numpy().tobytes())
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (("--batch-size", 16), "--batch-size was 32 and is 16"),
        (("--seed", 5), "--seed was 0 and is 5"),
        (("--no-repeated-aug",), "--repeated-aug was True and is False"),
        (("--fusion-strategy", "all", "--fusion-token", 1), "the fusion plan's tokens was (17, 17"),
        (
            ("--data-set", "FMNIST", "--data-path", "fashion", "--input-size", 8),
            "--data-set was DIGITS and is FMNIST",
        ),
    ],
)
def test_what_would_change_the_end_is_refused(whole, fashion, capsys, monkeypatch, changed, complaint):
    monkeypatch.chdir(fashion)
    flags = command(whole, "--auto-resume", *changed, epochs=4)[2:]
    with pytest.raises(SystemExit) as exit_:
        main.main(flags)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert "--resume-anyway" in line


def test_resume_anyway(whole, tmp_path):
    for name in ("checkpoint.pth", "log.txt"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    finish(start(tmp_path, "--auto-resume", "--resume-anyway", "--batch-size", 32, epochs=4))
    assert [line["epoch"] for line in read_log(tmp_path / "log.txt")] == [0, 1, 2, 3]


def test_accuracy_does_not_depend_on_the_number_of_processes(whole):
    """360 test images in batches of 96 or 60, over 1, 2 and 3 processes."""
    found = set()
    for processes, batch in ((1, 64), (2, 64), (3, 40)):
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        flags = ("--eval", "--dist-eval", "--resume", whole / "checkpoint.pth", "--batch-size", batch)
        out = finish(launch(whole, *flags, launcher=launcher))
        found.add(tuple(line.split(", loss")[0] for line in out.splitlines() if "top-5" in line))
    assert len(found) == 1
    assert len(found.pop()) == 2


def test_deterministic_asks_pytorch_for_it(tmp_path):
    program = "import torch, main; main.main({}); print(torch.are_deterministic_algorithms_enabled())"
    flags = command(tmp_path, "--deterministic", epochs=1)[2:]
    for given, expected in ((flags, "True"), ([flag for flag in flags if flag != "--deterministic"], "False")):
        out = subprocess.run(
            [sys.executable, "-c", program.format([*given, "--output_dir", ""])],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert out.stdout.splitlines()[-1] == expected
