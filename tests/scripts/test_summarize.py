"""The table of runs: rows, seeds, ratios, formats, and runs that are not finished."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import summarize as program
from training.results import Spread, find_runs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "summarize.py"


def write_run(folder, strategy="no", tokens=(17, 17, 17), accuracies=(80.0, 90.5), epochs=2, seconds=3.0, **settings):
    folder.mkdir(parents=True)
    about = {"model": "m", "fusion_strategy": strategy, "token_counts": tokens, "last_epoch": epochs, "seed": 0}
    (folder / "args.json").write_text(json.dumps(about | {"flops": 32_000_000, "output_dir": str(folder)} | settings))
    with open(folder / "log.txt", "w") as log:
        for i, accuracy in enumerate(accuracies):
            line = {
                "epoch": i,
                "test_acc1": accuracy,
                "train_seconds": seconds + i,
                "peak_memory_mb": 900 + i,
                "training_memory_mb": 100 - i,
            }
            log.write(json.dumps(line) + "\n")


def summarize(*arguments):
    """The program in this process: exit code, output and errors."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = 1
            print(exit_.code, file=sys.stderr)
    return code, out.getvalue(), err.getvalue()


def table(*arguments):
    """The rows as dictionaries."""
    code, out, err = summarize(*arguments, "--format", "csv")
    assert code == 0, err
    return list(csv.DictReader(out.splitlines()))


def test_a_row_for_every_run(tmp_path):
    write_run(tmp_path / "plain", accuracies=[90.5, 80.0])
    write_run(tmp_path / "fused", "upper", [17, 17, 9], [70.0, 75.0], fusion_layer=1, seconds=2.1)
    plain, fused = table(tmp_path)
    assert plain == {
        "run": "plain",
        "strategy": "no",
        "fused": "0",
        "seeds": "1",
        "epochs": "2 of 2",
        "best top-1 %": "90.50",
        "top-1 %": "80.00",
        "s / epoch": "3.5",
        "x time": "1.00",
        "total": "0:00:07",
        "training MB": "100",
        "x memory": "1.00",
        "peak MB": "901",
        "M mult-adds": "32",
        "x tokens": "1.00",
        "tokens at the end": "17 of 17",
    }
    assert (fused["strategy"], fused["fused"], fused["tokens at the end"]) == ("upper from 1", "8", "9 of 17")
    assert fused["x time"] == "0.74"  # 2.6 / 3.5


def test_tokens_say_what_time_should_be(tmp_path):
    write_run(tmp_path / "plain", tokens=[20, 20, 20])
    write_run(tmp_path / "fused", "all", [20, 10, 5])
    plain, fused = table(tmp_path)
    assert (fused["x tokens"], plain["x tokens"]) == ("0.75", "1.00")  # layers have 20 and 10


def test_seeds_are_one_row_with_their_deviation(tmp_path):
    write_run(tmp_path / "no-seed0", accuracies=[80.0, 90.0])
    write_run(tmp_path / "no-seed1", accuracies=[80.0, 91.0], seed=1, date="another day")
    write_run(tmp_path / "no-seed2", accuracies=[80.0, 50.0], seed=2, lr=0.1)  # another experiment
    row, other = table(tmp_path)
    assert (row["run"], row["seeds"], row["top-1 %"]) == ("no", "2", "90.50 \u00b1 0.71")
    assert (other["seeds"], other["top-1 %"]) == ("1", "50.00")


def test_a_flag_that_is_newer_than_a_run_was_at_its_default(tmp_path):
    write_run(tmp_path / "no-seed0")
    write_run(tmp_path / "no-seed1", seed=1, compile=False)
    write_run(tmp_path / "no-seed2", seed=2, compile=True)
    assert [row["seeds"] for row in table(tmp_path)] == ["2", "1"]


def test_ratios_are_to_the_run_of_the_same_seed(tmp_path):
    for seed, slow in ((0, 1.0), (1, 2.0)):
        write_run(tmp_path / f"plain-seed{seed}", seed=seed, seconds=4 * slow, epochs=1, accuracies=[90.0])
        write_run(tmp_path / f"all-seed{seed}", "all", [17, 9], seed=seed, seconds=2 * slow, epochs=1, accuracies=[9.0])
    assert [row["x time"] for row in table(tmp_path)] == ["1.00 \u00b1 0.00", "0.50 \u00b1 0.00"]


def test_a_seed_without_its_own_run_to_compare_with_takes_another(tmp_path):
    write_run(tmp_path / "plain-seed0", seconds=4.0)
    write_run(tmp_path / "all-seed7", "all", [17, 17, 9], seed=7, seconds=1.0)
    assert [row["x time"] for row in table(tmp_path)] == ["1.00", "0.33"]  # 1.5 / 4.5


def test_seeds_on_different_gpus_are_one_row(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"no-seed{seed}", seed=seed, device=f"cuda:{seed}", hardware="cuda (H100)")
    assert [row["seeds"] for row in table(tmp_path)] == ["2"]


@pytest.mark.parametrize("changed", [{"grad_checkpointing": True}, {"hardware": "another"}, {"amp": True}])
def test_only_what_is_alike_is_compared(tmp_path, changed):
    write_run(tmp_path / "plain")
    write_run(tmp_path / "fused", "all", [17, 17, 9], **changed)
    _, fused = table(tmp_path)
    assert fused["x time"] == ""


def test_one_value_has_no_deviation():
    assert Spread.of([3.0]) == (3.0, None)
    assert Spread.of([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_what_is_not_finished_is_marked_and_not_averaged(tmp_path):
    write_run(tmp_path / "no-seed0", accuracies=[80.0, 90.0])
    write_run(tmp_path / "no-seed1", accuracies=[70.0], seed=1)
    write_run(tmp_path / "no-seed2", accuracies=[], seed=2)
    rows = table(tmp_path)
    assert [(row["epochs"], row["seeds"], row["top-1 %"]) for row in rows] == [
        ("2 of 2", "1", "90.00"),
        ("1 of 2", "1", "70.00"),
        ("0 of 2", "1", ""),
    ]


def test_nothing_to_compare_with_leaves_cells_empty(tmp_path):
    write_run(tmp_path / "fused", "all", [17, 17, 9])
    write_run(tmp_path / "plain", model="another")
    _, fused = table(tmp_path)
    assert fused["x time"] == fused["x memory"] == fused["x tokens"] == ""


def test_runs_in_one_file_give_the_same_table(tmp_path):
    write_run(tmp_path / "runs" / "plain")
    write_run(tmp_path / "runs" / "fused", "all", [17, 17, 9])
    file = tmp_path / "runs.json"
    rows = table(tmp_path / "runs", "--save", file, "--command", "bash it.sh")
    assert table(file) == rows
    assert json.loads(file.read_text())["command"] == "bash it.sh"
    assert str(tmp_path) not in file.read_text()


def test_saved_runs_and_others_are_one_experiment(tmp_path):
    write_run(tmp_path / "first" / "no-seed0", finetune="/here/weights.pth", teacher_path="/here/teacher.pth")
    write_run(tmp_path / "later" / "no-seed1", seed=1, finetune="weights.pth", teacher_path="/there/teacher.pth")
    write_run(tmp_path / "later" / "no-seed2", seed=2, finetune="others.pth", teacher_path="/there/teacher.pth")
    summarize(tmp_path / "first", "--save", tmp_path / "runs.json")
    assert "/here" not in (tmp_path / "runs.json").read_text()
    assert [row["seeds"] for row in table(tmp_path / "runs.json", tmp_path / "later")] == ["2", "1"]


def test_a_run_given_twice_is_no_second_seed(tmp_path):
    write_run(tmp_path / "no-seed0")
    code, _, err = summarize(tmp_path, tmp_path)
    assert code == 1
    assert "no: two runs with the same settings and seed 0" in err


def test_a_run_that_started_later_is_complete_at_its_last_epoch(tmp_path):
    write_run(tmp_path / "run", accuracies=[1.0, 2.0], epochs=2)
    log = tmp_path / "run" / "log.txt"
    log.write_text(log.read_text().splitlines()[1] + "\n")
    (run,) = find_runs(tmp_path)
    assert run.complete


def test_memory_that_could_not_be_measured_is_not_compared(tmp_path):
    write_run(tmp_path / "plain")
    log = tmp_path / "plain" / "log.txt"
    lines = [json.loads(line) | {"training_memory_mb": 0.0} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = table(tmp_path)
    assert (row["x time"], row["x memory"]) == ("1.00", "")


def test_the_readme_shows_what_was_measured():
    code, out, err = summarize(ROOT / "results" / "fmnist_cpu.json")
    assert code == 0, err
    assert out in (ROOT / "README.md").read_text()


def test_markdown_and_latex(tmp_path):
    write_run(tmp_path / "my_run")
    _, out, _ = summarize(tmp_path)
    header, rule, row = out.splitlines()
    assert len(header) == len(rule) == len(row)
    assert header.startswith("| run    | strategy |")
    _, out, _ = summarize(tmp_path, "--format", "latex")
    assert out.splitlines()[0] == r"\begin{tabular}{llrrrrrrrrrrrrrr}"
    assert r"best top-1 \% & top-1 \%" in out
    assert r"my\_run & no & 0 & 1 & 2 of 2 & 90.50" in out


def test_curves(tmp_path):
    write_run(tmp_path / "plain")
    write_run(tmp_path / "fused", "all", [17, 17, 9], accuracies=[])
    code, _, err = summarize(tmp_path, "--plot", tmp_path / "curves.png")
    assert code == 0, err
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "log"),
    [
        (None, None),
        ("{", ""),
        ("[]", ""),
        ("{}", ""),
        ('{"token_counts": [5, 5], "last_epoch": 1, "fusion_strategy": "no"}', "nothing\nhere\n"),
        ('{"token_counts": [5, 5], "last_epoch": 1, "fusion_strategy": "no"}', '{"epoch": 0}\n'),
        ('{"token_counts": [5, 5], "last_epoch": 1, "fusion_strategy": "no"}', None),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, args, log):
    for name, text in (("args.json", args), ("log.txt", log)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)):
        find_runs(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{"name": "a"}]}', '{"runs": 3}'])
def test_a_file_that_holds_no_runs_is_one_line(tmp_path, text):
    (tmp_path / "runs.json").write_text(text)
    code, _, err = summarize(tmp_path / "runs.json")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "runs.json" in err


def test_as_a_program(tmp_path):
    write_run(tmp_path / "plain")
    result = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout == summarize(tmp_path)[1]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write_run(tmp_path / "running", accuracies=[80.0], epochs=4)
    with open(tmp_path / "running" / "log.txt", "a") as log:
        log.write('{"epoch": 1, "test_acc')
    (row,) = table(tmp_path / "running")
    assert (row["epochs"], row["top-1 %"]) == ("1 of 4", "80.00")
