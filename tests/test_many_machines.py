"""Launchers that meet: two on one machine, two in network namespaces of their own, and one that loses the other."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.test_resume import children
from training.records.runs import read_log

ROOT = Path(__file__).parents[1]
FLAGS = (
    "--data-set DIGITS --lr 1e-3 --unscale-lr --warmup-epochs 0 --no-aug --mixup 0 --cutmix 0 --no-repeated-aug"
    " --no-model-ema --drop-path 0 --num_workers 0 --device cpu"
).split()
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SCORES = ("train_loss", "train_grad_norm", "test_loss", "test_acc1")


def launcher(endpoint, *more, nodes="2", config="last_call_timeout=1"):
    """The words that start one machine's launcher."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", f"--rdzv-conf={config}"]
    return [*words, "--monitor-interval=0.1", *more, "main.py"]


def start(words, log):
    with open(log, "w") as file:
        return subprocess.Popen(words, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture
def endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The epoch of one process, with the images of both in each step."""
    folder = tmp_path_factory.mktemp("alone")
    process = Forked([*FLAGS, "--epochs", "1", "--batch-size", "360", "--output_dir", str(folder)])
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    (line,) = read_log(folder / "log.txt")
    return line


def assert_same(folder, alone, printed):
    (line,) = read_log(folder / "log.txt")
    assert (line["processes"], alone["processes"]) == (2, 1)
    assert "180 x 2 processes = 360" in printed
    for score in SCORES:
        assert line[score] == pytest.approx(alone[score], rel=1e-4), score


def test_two_launchers_on_one_machine_train_like_one_process(alone, endpoint, tmp_path):
    words = [*launcher(endpoint), *FLAGS, "--epochs", "1", "--batch-size", "180", "--output_dir", str(tmp_path / "out")]
    both = [start(words, tmp_path / name) for name in ("first", "second")]
    codes = [process.wait(timeout=120) for process in both]
    printed = [(tmp_path / name).read_text() for name in ("first", "second")]
    assert codes == [0, 0], "".join(printed)
    assert_same(tmp_path / "out", alone, "".join(printed))
    assert "".join(printed).count("epoch 0/0: ") == 1


# Two network namespaces, each with one end of a cable. In a user namespace of its own nobody needs to be root for that.
CABLE = """
set -e
unshare -n sleep 300 & other=$!
trap 'kill $other' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add here type veth peer name there netns $other
ip addr add 10.77.0.1/24 dev here; ip link set here up; ip link set lo up
nsenter -t $other -n sh -c 'ip addr add 10.77.0.2/24 dev there; ip link set there up; ip link set lo up'
{first} &
first=$!
nsenter -t $other -n {second}
wait $first
"""


def in_namespaces(first, second, **kwargs):
    words = ["unshare", "-rn", "bash", "-c", CABLE.format(first=first, second=second)]
    return subprocess.run(words, capture_output=True, text=True, check=False, **kwargs)


@pytest.fixture(scope="module")
def _namespaces():
    missing = [name for name in ("unshare", "nsenter", "ip", "bash") if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} here")
    tried = in_namespaces("true", "true", timeout=30)
    if tried.returncode:
        pytest.skip(f"no network namespaces here ({' '.join(tried.stderr.split())})")


@pytest.mark.usefixtures("_namespaces")
def test_two_machines_that_share_nothing_but_a_cable_train_like_one_process(alone, tmp_path):
    """Neither knows the other's name, and each has a loopback of its own: only what the page says makes them meet."""
    flags = [*FLAGS, "--epochs", "1", "--batch-size", "180", "--output_dir", str(tmp_path / "out")]

    def machine(name, address, is_host):
        host = f"last_call_timeout=1,is_host={is_host}"
        words = [*launcher("10.77.0.1:29500", f"--local-addr={address}", config=host), *flags]
        return shlex.join(["env", f"GLOO_SOCKET_IFNAME={name}", *words])

    result = in_namespaces(
        machine("here", "10.77.0.1", "true"),
        machine("there", "10.77.0.2", "false"),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert_same(tmp_path / "out", alone, result.stdout)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")
def test_where_a_machine_is_lost_the_other_resumes_alone(endpoint, tmp_path):
    out = tmp_path / "out"

    def machine(name, is_host):
        quick = f"last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5,is_host={is_host}"
        words = launcher(endpoint, "--max-restarts=2", nodes="1:2", config=quick)
        words += [*FLAGS, "--epochs", "2", "--batch-size", "60", "--save-steps", "1"]
        words += ["--auto-resume", "--resume-anyway", "--output_dir", str(out)]
        return start(words, tmp_path / name)

    stays, lost = machine("stays", "true"), machine("lost", "false")  # the meeting point must not be lost
    try:
        deadline = time.monotonic() + 100
        while not (out / "log.txt").exists() or not (out / "log.txt").read_text():
            gone = time.monotonic() > deadline or stays.poll() is not None
            assert not gone, (tmp_path / "stays").read_text()
            time.sleep(0.05)
        dead = [lost.pid, *children(lost.pid).values()]
        for number in dead:
            os.kill(number, signal.SIGKILL)
        assert stays.wait(timeout=100) == 0, (tmp_path / "stays").read_text()
    finally:
        for process in (stays, lost):
            process.kill()
            process.wait()
    printed = (tmp_path / "stays").read_text() + (tmp_path / "lost").read_text()
    assert "although the number of processes was 2 and is 1" in printed
    assert "60 x 1 process = 60" in printed
    log = read_log(out / "log.txt")
    assert [line["epoch"] for line in log] == [0, 1]
    assert (log[0]["processes"], log[-1]["processes"]) == (2, 1)
