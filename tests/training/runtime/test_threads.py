"""What OpenMP is told before PyTorch is imported, and what of it the user decides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.runtime import threads

ROOT = Path(__file__).parents[3]
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Plays torchrun, which sets one thread where the user said nothing; its child says what it makes of that, on 8 cores.
LAUNCHER = """
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True, env=os.environ | {"LOCAL_WORLD_SIZE": "2"})
"""
CHILD = """
import os
from training.runtime import threads
threads.usable_cores = lambda: list(range(8))
threads.prepare_threads()
print(os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def prepare(monkeypatch):
    """Call prepare_threads in an environment, beside others that keep so many cores busy; returns what it set."""
    monkeypatch.setattr(threads, "said_by_user", lambda variable: variable in os.environ)  # not whoever runs the tests

    def call(busy=0.0, cores=8, **environment):
        monkeypatch.setattr(os, "environ", dict(environment))
        monkeypatch.setattr(threads, "usable_cores", lambda: list(range(cores)))
        monkeypatch.setattr(threads, "busy_cores", lambda cores: busy)
        threads.prepare_threads()
        return {name: os.environ[name] for name in NAMES if name in os.environ}

    return call


def test_alone_openmp_decides(prepare):
    assert prepare() == {}
    assert prepare(busy=0.1) == {}


def test_beside_others_threads_sleep_while_they_wait(prepare):
    assert prepare(busy=1.0) == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "3"}])
def test_what_the_user_said_stays(prepare, said):
    passive = {"OMP_WAIT_POLICY": "PASSIVE"} if "OMP_NUM_THREADS" in said else {}
    assert prepare(busy=1.0, **said) == said | passive


@pytest.mark.parametrize(("processes", "cores", "share"), [(2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_processes_of_a_machine_share_its_cores(prepare, processes, cores, share):
    assert prepare(cores=cores, LOCAL_WORLD_SIZE=str(processes)) == {"OMP_NUM_THREADS": str(share)}


@pytest.mark.parametrize(
    ("slurm", "share"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, "4"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_NODEID": "2"}, "8"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),2", "SLURM_NODEID": "1"}, "2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),2", "SLURM_NODEID": "2"}, "8"),
        ({"SLURM_NTASKS_PER_NODE": "2"}, "8"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NTASKS_PER_NODE": "2"}, "4"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "LOCAL_WORLD_SIZE": "2"}, "8"),  # torchrun in a task
    ],
)
def test_tasks_of_srun_share_the_cores_of_their_node(prepare, slurm, share):
    assert prepare(cores=16, SLURM_CPUS_ON_NODE="16", **slurm) == {"OMP_NUM_THREADS": share}


def test_tasks_of_srun_that_are_bound_to_their_cores_use_them_all(prepare):
    assert prepare(cores=4, SLURM_CPUS_ON_NODE="16", SLURM_STEP_TASKS_PER_NODE="4") == {}


def test_without_srun_a_job_is_one_process(prepare):
    assert prepare(cores=16, SLURM_CPUS_ON_NODE="16", SLURM_NTASKS="1", SLURM_STEP_TASKS_PER_NODE="1") == {}


def test_the_threads_that_a_user_of_srun_sets_stay(monkeypatch):
    """The parent of a task is srun's daemon, whose environment isn't the user's."""
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_TASKS_PER_NODE": "4", "OMP_NUM_THREADS": "3"})
    assert threads.said_by_user("OMP_NUM_THREADS")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the launcher's environment from /proc")
@pytest.mark.parametrize(("user", "used"), [(None, "4"), ("1", "1"), ("3", "3")])
def test_a_launchers_one_thread_is_not_the_users(user, used):
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    said = {"OMP_NUM_THREADS": user} if user else {}
    command = [sys.executable, "-c", LAUNCHER, CHILD]
    result = subprocess.run(command, cwd=ROOT, env=clean | said, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == used


def test_main_tells_openmp_before_pytorch_is_there(tmp_path):
    """A busy process of its own makes the processor shared, on every machine; PyTorch isn't needed for it."""
    (tmp_path / "torch.py").write_text("import os; raise SystemExit(os.environ.get('OMP_WAIT_POLICY', 'not told'))")
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        result = subprocess.run(
            [sys.executable, ROOT / "main.py"],
            env=clean | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    finally:
        busy.kill()
        busy.wait()
    assert result.stderr.strip() == ("PASSIVE" if Path("/proc/stat").exists() else "not told")
