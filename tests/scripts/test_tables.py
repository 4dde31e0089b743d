"""The scripts that train tables: which runs they start, and what an interruption leaves."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fusion
from tests.fashion import write_fashion
from training.build.model import new_model
from training.records.experiments import NOT_COMPARED
from training.records.runs import find_runs
from training.settings.command_line import get_args_parser, parse_args
from training.settings.facts import recorded

ROOT = Path(__file__).parents[2]
PAPER = ("cifar100_vim_tiny", "cifar100_vim_small", "imagenet_vim_tiny")
STRATEGIES = ["no", "all", "interleaved", "lower", "upper"]
# Stands for the environment's interpreter: notes how it was called, one line a call.
RECORDER = '#!/bin/sh\n[ "$1" != -c ] || { echo 1; exit; }\necho "$@" >> calls\n'


def make_house(folder, python):
    """A copy of the scripts with nothing to install and another interpreter."""
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "scripts" / "setup.sh").write_text("")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(python)
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture
def house(tmp_path):
    return make_house(tmp_path, RECORDER)


VARIABLES = ("GPUS", "DATA", "OUTPUT", "SEEDS", "KS", "HEAD", "NODES", "PORT")  # that scripts read


def start(house, script, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["bash", house / "scripts" / f"{script}.sh", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def trainings(house, script, *arguments, **environment):
    """The flags of main.py in each training that a script starts, as words, and the launcher's words before them."""
    result = start(house, script, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    *runs, last = (house / "calls").read_text().splitlines()
    assert "summarize.py" in last
    return [tuple(part.split() for part in run.split(" main.py ")) for run in runs]


def plan_of(flags, depth):
    args = get_args_parser().parse_args(flags)
    return fusion.plan(args.fusion_strategy, depth, args.fusion_layer, args.fusion_token, total=args.fusion_total)


@pytest.mark.parametrize("script", PAPER)
def test_the_papers_settings_and_matched_budgets(house, script):
    runs = [flags for _, flags in trainings(house, script, "table")]
    parsed = [get_args_parser().parse_args(flags) for flags in runs]
    assert [args.fusion_strategy for args in parsed] == STRATEGIES
    assert [sum(plan_of(flags, 24)) for flags in runs] == [0, 168, 168, 162, 162]
    for args in parsed:
        assert (args.epochs, args.batch_size, args.drop_path, args.weight_decay) == (300, 128, 0, 0.1)
        assert args.amp is False
        assert args.auto_resume
        assert args.model == ("vim_small_patch16_224" if "small" in script else "vim_tiny_patch16_224")
        assert args.data_set == ("IMNET" if "imagenet" in script else "CIFAR")
    assert len({args.output_dir for args in parsed}) == len(runs)


def test_one_strategy_and_flags_that_win(house):
    flags = ("upper", "--", "--epochs", "7", "--lr", "1e-3")
    result = start(house, "cifar100_vim_tiny", *flags)
    assert result.returncode == 2
    assert "OUTPUT=" in result.stderr
    ((_, flags),) = trainings(house, "cifar100_vim_tiny", *flags, OUTPUT="trial")
    args = get_args_parser().parse_args(flags)
    assert (args.fusion_strategy, args.epochs, args.lr) == ("upper", 7, 1e-3)


def test_the_environment_says_where_and_how_often(house):
    runs = trainings(house, "cifar100_vim_tiny", "no", GPUS="2", DATA="/images", OUTPUT="here", SEEDS="3 4")
    parsed = [get_args_parser().parse_args(flags) for _, flags in runs]
    assert [(args.seed, args.output_dir) for args in parsed] == [(3, "here/no-seed3"), (4, "here/no-seed4")]
    assert all(args.data_path == "/images" for args in parsed)
    assert all("--nproc-per-node=2" in launcher for launcher, _ in runs)


def test_where_upper_and_lower_begin(house):
    runs = [flags for _, flags in trainings(house, "cifar100_layers", "table", KS="6 12")]
    found = [(args.fusion_strategy, args.fusion_layer) for args in map(get_args_parser().parse_args, runs)]
    assert found == [("no", None), ("lower", 6), ("upper", 6), ("lower", 12), ("upper", 12)]
    assert [sum(plan_of(flags, 24)) for flags in runs] == [0, 168, 168, 168, 168]


def test_the_cpu_table_has_two_seeds_and_upper_at_two_budgets(house):
    runs = [flags for _, flags in trainings(house, "fmnist_cpu", "table")]
    assert [sum(plan_of(flags, 12)) for flags in runs] == [0, 36, 36, 36, 36, 18] * 2
    assert [get_args_parser().parse_args(flags).seed for flags in runs] == [0] * 6 + [1] * 6


def test_the_rows_of_equal_cost_cost_the_same(house):
    runs = [parse_args(flags) for _, flags in trainings(house, "equal_cost", "table", SEEDS="0")]
    models = {Path(args.output_dir).name: new_model(dataclasses.replace(args, nb_classes=10)) for args in runs}
    whole = fusion.flops(models.pop("no-seed0"))
    shares = {name: fusion.flops(model) / whole for name, model in models.items()}
    assert list(shares) == [f"{row}-seed0" for row in "smaller all interleaved lower upper searched".split()]
    assert all(0.665 < share < 0.705 for share in shares.values()), shares


def test_ctrl_c_in_a_terminal_reaches_the_training_once(tmp_path):
    house = make_house(tmp_path, SAVER.replace("TERM", "TERM INT"))
    process = subprocess.Popen(
        ["bash", house / "scripts" / "fmnist_cpu.sh", "table"],
        cwd=house,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
    )
    wait_for(house / "started")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 143
    assert (house / "calls").read_text().splitlines()[1:] == ["saved"]


@pytest.mark.parametrize("arguments", [(), ("uper",), ("",), ("upper", "--epochs", "3"), ("upper", "lower")])
def test_a_wrong_call_is_one_line(house, arguments):
    result = start(house, "cifar100_vim_tiny", *arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "upper" in result.stderr
    assert not (house / "calls").exists()


def test_a_failed_run_ends_the_table(tmp_path):
    house = make_house(tmp_path, RECORDER + "exit 3\n")
    assert start(house, "cifar100_vim_tiny", "table").returncode == 3
    assert len((house / "calls").read_text().splitlines()) == 1


# A training that saves for a second when it is told to end.
SAVER = (
    RECORDER
    + """
trap 'sleep 1; echo saved >> calls; exit 143' TERM
touch started
for second in $(seq 60); do sleep 0.1; sleep 0.9; done
"""
)


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_sigterm_waits_until_the_training_has_saved_and_starts_no_other(tmp_path):
    house = make_house(tmp_path, SAVER)
    process = subprocess.Popen(["bash", house / "scripts" / "fmnist_cpu.sh", "table"], cwd=house)
    wait_for(house / "started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert (house / "calls").read_text().splitlines()[1:] == ["saved"]


def test_a_slurm_job_queues_again_when_the_training_has_saved(tmp_path):
    house = make_house(tmp_path, SAVER)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "scontrol $@" >> calls\n')
    scontrol.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    command = ["bash", "scripts/slurm.sbatch", "scripts/fmnist_cpu.sh", "upper"]
    process = subprocess.Popen(command, cwd=house, env=environment)
    wait_for(house / "started")
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert (house / "calls").read_text().splitlines()[1:] == ["saved", "scontrol requeue 17"]


# Stands for srun on two nodes: runs a command once for each, and passes SIGTERM on to both.
SRUN = """#!/bin/bash
while [[ "$1" = --* ]]; do echo "srun $1" >> calls; shift; done
trap 'kill -TERM $first $second' TERM
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
while [ -n "$(jobs -pr)" ]; do wait || true; done
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $@" >> calls; fi
"""


@pytest.fixture
def two_nodes(tmp_path):
    """The environment of a SLURM job on two nodes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "70017", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return clean | slurm | {"SLURM_CPUS_PER_TASK": "32", "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_the_nodes_of_a_slurm_job_meet_on_the_first(house, two_nodes):
    command = ["bash", "scripts/slurm.sbatch", "scripts/cifar100_layers.sh", "table"]
    environment = two_nodes | {"GPUS": "4", "SEEDS": "0 1", "KS": "6"}
    subprocess.run(command, cwd=house, env=environment, check=True, timeout=60)
    calls = (house / "calls").read_text().splitlines()
    assert "srun --cpus-per-task=32" in calls
    launches = [line for line in calls if "main.py" in line]
    ports = [port for port in range(20017, 20023) for _ in range(2)]  # 3 rows of 2 seeds, each on both nodes
    assert sorted(int(re.search(r"--rdzv-endpoint=node7:(\d+) ", line)[1]) for line in launches) == ports
    assert all("--nnodes=2 --rdzv-backend=c10d" in line and "--nproc-per-node=4" in line for line in launches)
    for line in launches:  # a run's two launchers have one name and one command
        assert launches.count(line) == 2
    assert sum("summarize.py" in line for line in calls) == 1


def test_a_slurm_job_of_two_nodes_queues_again_when_both_have_saved(tmp_path, two_nodes):
    house = make_house(tmp_path, SAVER)
    command = ["bash", "scripts/slurm.sbatch", "scripts/fmnist_cpu.sh", "upper"]
    process = subprocess.Popen(command, cwd=house, env=two_nodes | {"SEEDS": "0"})
    wait_for(house / "started")
    time.sleep(0.5)  # for the other one
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert (house / "calls").read_text().splitlines()[-3:] == ["saved", "saved", "scontrol requeue 70017"]


def test_a_slurm_job_that_is_stopped_while_it_starts_queues_again(house, tmp_path):
    """The signal comes right before the script knows the number of what it has started."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "scontrol $@" >> calls\n')
    scontrol.chmod(0o755)
    (tmp_path / "before.sh").write_text("""trap '[ "$BASH_COMMAND" != "job=\\$!" ] || kill -TERM $$' DEBUG\n""")
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SLURM_JOB_ID": "17", "BASH_ENV": str(tmp_path / "before.sh")}
    command = ["bash", "scripts/slurm.sbatch", "scripts/fmnist_cpu.sh", "upper"]
    subprocess.run(command, cwd=house, env=environment, check=False, timeout=60)
    assert (house / "calls").read_text().splitlines()[-1] == "scontrol requeue 17"


def test_a_slurm_job_that_ends_by_itself_does_not_queue_again(house):
    environment = os.environ | {"SLURM_JOB_ID": "17"}  # and no scontrol, which would fail
    command = ["bash", "scripts/slurm.sbatch", "scripts/fmnist_cpu.sh", "upper"]
    subprocess.run(command, cwd=house, env=environment, check=True, timeout=60, capture_output=True)


def test_a_real_row_goes_on_after_sigterm(tmp_path):
    house = make_house(tmp_path / "house", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in ROOT.iterdir():
        if not (house / path.name).exists() and not path.name.startswith("."):
            (house / path.name).symlink_to(path)
    shutil.copy(ROOT / "scripts" / "summarize.py", house / "scripts")
    images = write_fashion(tmp_path / "images", train=48, test=8)
    row = ["bash", house / "scripts" / "fmnist_cpu.sh", "upper", "--", "--batch-size", "4", "--save-steps", "1"]
    environment = os.environ | {"SEEDS": "0", "DATA": str(images), "OUTPUT": str(tmp_path / "output")}
    checkpoint = tmp_path / "output" / "upper-seed0" / "checkpoint.pth"
    process = subprocess.Popen(row, env=environment)
    wait_for(checkpoint)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    log = checkpoint.with_name("log.txt")
    assert not log.exists() or len(log.read_text().splitlines()) < 3  # epochs: it did stop
    result = subprocess.run(row, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert f"weights    {checkpoint}" in result.stdout
    *_, table = result.stdout.strip().splitlines()
    assert "upper from 6" in table
    assert "3 of 3" in table


def test_the_cpu_table_is_that_of_the_results(house):
    """The recipe's settings and the script's are those of the runs whose figures are published."""
    saved = find_runs(ROOT / "results" / "fmnist_cpu.json")
    runs = [flags for _, flags in trainings(house, "fmnist_cpu", "table", OUTPUT="output")]
    for flags in runs:
        args = vars(parse_args(flags)) | {"last_epoch": 3}
        name = Path(args["output_dir"]).name.removesuffix(f"-seed{args['seed']}")
        (run,) = (run for run in saved if (run.name, run.settings["seed"]) == (name, args["seed"]))
        different = {key for key in args if comparable(args[key]) != run.settings.get(key)}
        assert different <= {*recorded(unused_with="no_aug"), *NOT_COMPARED, "nb_classes"}  # which the data set says


def comparable(value):
    return list(value) if isinstance(value, tuple) else value


def test_the_demo_trains_as_it_was_measured(house):
    result = start(house, "demo")
    assert result.returncode == 0, result.stderr
    plain, upper, _ = (house / "calls").read_text().splitlines()
    flags = (
        "--data-set DIGITS --model vim_nano_patch4_32 --batch-size 32 --epochs 12 --warmup-epochs 1 --lr 3e-3 "
        "--unscale-lr --drop-path 0.0 --weight-decay 0.1 --aa none --mixup 0 --cutmix 0 --reprob 0 --no-repeated-aug "
        "--no-model-ema --num_workers 1 --no_amp"
    )
    measured = vars(parse_args(flags.split()))
    fused = measured | {"fusion_strategy": "upper", "fusion_layer": 4, "fusion_token": 6}
    for call, expected in ((plain, measured), (upper, fused)):
        found = vars(parse_args(call.split(" main.py ")[1].split()))
        assert {key for key in found if found[key] != expected[key]} == {"recipe", "output_dir"}
