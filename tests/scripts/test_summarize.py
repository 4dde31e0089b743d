"""The table of runs: rows, seeds, ratios, formats, and runs that are not finished."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import summarize as program
from training.records.experiments import by_experiment
from training.records.runs import Spread, find_runs

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


def write_growing(folder, sizes, seconds, memory, epochs=4, **settings):
    """A run whose images grow: the size, the seconds and the memory of each epoch."""
    write_run(folder, accuracies=(80.0,) * len(sizes), epochs=epochs, train_img_sizes=[4, 8], **settings)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    for line, size, took, held in zip(lines, sizes, seconds, memory, strict=True):
        line |= {"image_size": size, "train_seconds": took, "training_memory_mb": held}
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_where_images_grow_the_seconds_are_the_mean_of_what_each_size_takes(tmp_path):
    write_growing(tmp_path / "run", (4, 4, 4, 8), (2.0, 2.0, 99.0, 10.0), (1, 1, 1, 9))
    (row,) = table(tmp_path)
    assert (row["s / epoch"], row["training MB"], row["total"]) == ("4.0", "9", "0:01:53")  # 3 of 2 s, 1 of 10 s


def test_an_unfinished_run_is_compared_with_the_same_epochs(tmp_path):
    counts = {"stage_token_counts": [[5, 5, 5], [17, 17, 17]]}
    write_growing(tmp_path / "plain", (4, 4, 8, 8), (2.0, 2.0, 10.0, 10.0), (20, 20, 90, 90), **counts)
    fewer = {"strategy": "all", "tokens": [17, 9, 5], "stage_token_counts": [[5, 3, 2], [17, 9, 5]]}
    write_growing(tmp_path / "fused", (4, 4), (1.0, 1.0), (10, 10), **fewer)
    _, fused = table(tmp_path)
    assert (fused["x time"], fused["x memory"]) == ("0.50", "0.50")
    assert fused["x tokens"] == "0.77"  # (4 + 13) / (5 + 17)


def test_runs_whose_images_grow_are_not_compared_with_others_in_time(tmp_path):
    write_run(tmp_path / "plain")
    write_growing(tmp_path / "fused", (4, 8), (1.0, 5.0), (1, 1), strategy="all", tokens=[17, 9, 5])
    _, fused = table(tmp_path)
    assert (fused["x time"], fused["x memory"]) == ("", "")


def test_broken_counts_of_stages_are_refused(tmp_path):
    write_run(tmp_path / "run", stage_token_counts=[[17, "x"]])
    code, _, err = summarize(tmp_path)
    assert code == 1
    assert "its stage_token_counts are no counts of tokens" in err


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


def test_what_has_no_effect_is_not_compared(tmp_path):
    for seed, no_aug, aa in ((0, True, "none"), (1, True, "rand-m9"), (2, False, "none"), (3, False, "rand-m9")):
        write_run(tmp_path / f"no-seed{seed}", seed=seed, no_aug=no_aug, aa=aa, recipe=aa)
    assert [row["seeds"] for row in table(tmp_path)] == ["2", "1", "1"]


def test_ratios_are_to_the_run_of_the_same_seed(tmp_path):
    for seed, slow in ((0, 1.0), (1, 2.0)):
        write_run(tmp_path / f"plain-seed{seed}", seed=seed, seconds=4 * slow, epochs=1, accuracies=[90.0])
        write_run(tmp_path / f"all-seed{seed}", "all", [17, 9], seed=seed, seconds=2 * slow, epochs=1, accuracies=[9.0])
    assert [row["x time"] for row in table(tmp_path)] == ["1.00 \u00b1 0.00", "0.50 \u00b1 0.00"]


def test_a_seed_without_its_own_run_to_compare_with_has_no_ratio_and_says_so(tmp_path):
    write_run(tmp_path / "plain-seed0")
    write_run(tmp_path / "all-seed0", "all", [17, 17, 9])
    write_run(tmp_path / "all-seed7", "all", [17, 17, 9], seed=7)
    plain, fused = table(tmp_path)
    assert (plain["x time"], fused["x time"], fused["x memory"], fused["x tokens"]) == ("1.00", "", "", "1.00")
    _, _, err = summarize(tmp_path)
    assert err.splitlines() == [
        f"summarize.py: {tmp_path}/all-seed7: no x time and x memory, since no run without fusion has its seed, 7, "
        "on its machine"
    ]
    assert summarize(tmp_path, "--columns", "run,top-1 %")[2] == ""  # nothing is left out that would be shown


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("no", "no-seed1"), "no"),
        (("vim_small-a", "vim_small-b"), "vim_small"),
        (("run1", "run2"), "run1, run2"),
        (("upper", "upper-half"), "upper"),
    ],
)
def test_seeds_are_one_row_whatever_their_directories_are_called(tmp_path, names, name):
    for seed, directory in enumerate(names):
        write_run(tmp_path / directory, seed=seed)
    assert [(row["run"], row["seeds"]) for row in table(tmp_path)] == [(name, "2")]


def test_seeds_on_different_gpus_are_one_row(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"no-seed{seed}", seed=seed, device=f"cuda:{seed}", hardware="cuda (H100)")
    assert [row["seeds"] for row in table(tmp_path)] == ["2"]


def test_seeds_on_several_machines_are_one_row_without_seconds(tmp_path):
    for name, tokens in (("no", (17, 17, 17)), ("all", (17, 17, 9))):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}-seed{seed}", name, tokens, seed=seed, hardware=f"cpu {seed}")
    no, fused = table(tmp_path)
    assert (no["seeds"], fused["seeds"]) == ("2", "2")
    assert (fused["s / epoch"], fused["training MB"], fused["peak MB"], fused["total"]) == ("", "", "", "")
    assert fused["x time"] == "1.00 ± 0.00"  # each with its own machine


def test_one_seed_on_two_machines_is_two_rows(tmp_path):
    for machine in "ab":
        for seed in (0, 1):
            write_run(tmp_path / f"no-{machine}-seed{seed}", seed=seed, hardware=machine)
    assert [row["seeds"] for row in table(tmp_path)] == ["2", "2"]


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
    write_run(tmp_path / "first", accuracies=[90.0, 90.0])
    write_run(tmp_path / "second", accuracies=[10.0, 10.0])
    write_run(tmp_path / "third", seed=1, accuracies=[90.0, 90.0])
    code, out, err = summarize(tmp_path, "--columns", "seeds,top-1 %", "--format", "csv")
    assert (code, out) == (0, "seeds,top-1 %\n2,90.00 \u00b1 0.00\n")
    (line,) = err.splitlines()
    assert f"{tmp_path}/second: left out" in line
    assert f"{tmp_path}/first" in line


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


def test_the_docs_show_what_was_measured():
    code, out, err = summarize(ROOT / "results" / "fmnist_cpu.json")
    assert (code, err) == (0, "")
    assert out in (ROOT / "docs" / "results.md").read_text()


def test_columns(tmp_path):
    write_run(tmp_path / "run")
    columns = [len(summarize(tmp_path, *flags)[1].splitlines()[0].split(" | ")) for flags in ((), ("--columns", "all"))]
    assert columns == [8, 16]
    _, out, _ = summarize(tmp_path, "--columns", "peak MB, run")
    assert out.splitlines()[0] == "| peak MB | run |"
    code, _, err = summarize(tmp_path, "--columns", "run,peek MB")
    assert code == 1
    assert "--columns peek MB: no such name, did you mean peak MB" in err


def test_markdown_and_latex(tmp_path):
    write_run(tmp_path / "a|b_c*")
    _, out, _ = summarize(tmp_path)
    header, rule, row = out.splitlines()
    assert len(header) == len(rule) == len(row)
    assert row.startswith(r"| a\|b\_c\* | no       | 0 ")
    _, out, _ = summarize(tmp_path, "--format", "latex", "--columns", "run,strategy,fused,top-1 %")
    assert out.splitlines()[0] == r"\begin{tabular}{llrr}"
    assert r"run & strategy & fused & top-1 \% \\" in out
    assert r"a\textbar{}b\_c* & no & 0 & 90.50 \\" in out


@pytest.mark.parametrize("name", ["back\\slash", "a&b", "50%", "$x^2$", "{brace}", "~tilde", "<i>", "#1"])
def test_latex_shows_any_name(tmp_path, name):
    write_run(tmp_path / name)
    _, out, _ = summarize(tmp_path, "--format", "latex", "--columns", "run")
    cell = out.splitlines()[4].removesuffix(r" \\")
    assert re.fullmatch(r"([\w ]|\\[%_&#{}$]|\\text\w+\{\})+", cell), cell
    assert summarize(tmp_path, "--plot", tmp_path / "curves.png")[0] == 0


def test_curves(tmp_path):
    write_run(tmp_path / "plain")
    write_run(tmp_path / "fused", "all", [17, 17, 9], accuracies=[])
    code, _, err = summarize(tmp_path, "--plot", tmp_path / "curves.png")
    assert code == 0, err
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_legend_of_many_rows_is_all_in_the_picture(tmp_path):
    for number in range(14):
        write_run(tmp_path / f"interleaved-with-a-long-name-{number}", "all", [90, 90, 20], lr=number)
    figure = program.draw(by_experiment(find_runs(tmp_path))[0])
    figure.draw_without_rendering()
    legend, (width, height) = figure.legends[0].get_window_extent(), figure.get_size_inches() * figure.dpi
    assert len(figure.legends[0].get_texts()) == 14
    assert 0 <= legend.x0 < legend.x1 <= width
    assert 0 <= legend.y0 < legend.y1 <= height
    assert all(axis.get_window_extent().y1 < legend.y0 for axis in figure.axes)
    assert min(axis.get_window_extent().height for axis in figure.axes) > 0.25 * height


SETTINGS = {"model": "m", "fusion_strategy": "no", "token_counts": [17, 9], "last_epoch": 1, "seed": 0}
EPOCH = {"epoch": 0, "test_acc1": 9.0, "train_seconds": 1.0, "peak_memory_mb": 9, "training_memory_mb": 1}


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({}, {"train_seconds": 0}),
        ({}, {"train_seconds": float("inf")}),
        ({}, {"test_acc1": float("nan")}),
        ({}, {"peak_memory_mb": 10**400}),
        ({}, {"epoch": float("inf")}),
        ({}, {"note": [[[[[1]]]]]}),
        ({"flops": "many"}, {}),
        ({"finetune": 3}, {}),
        ({"teacher_path": ["a"]}, {}),
        ({"last_epoch": None}, {}),
        ({"token_counts": [17, True]}, {}),
        ({"versions": {"a": [[{"b": 1}]]}}, {}),
    ],
)
def test_edited_runs_are_one_line(tmp_path, settings, epoch):
    (tmp_path / "args.json").write_text(json.dumps(SETTINGS | settings))
    (tmp_path / "log.txt").write_text(json.dumps(EPOCH | epoch) + "\n" + json.dumps(EPOCH | {"epoch": 1}) + "\n")
    code, out, err = summarize(tmp_path, "--plot", tmp_path / "curves.png", "--save", tmp_path / "runs.json")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path) in err


@pytest.mark.parametrize("name", ["args.json", "log.txt", "runs.json"])
def test_what_is_nested_too_deeply_is_one_line(tmp_path, name):
    write_run(tmp_path / "run")
    deep = '{"runs": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001
    path = tmp_path / name if name == "runs.json" else tmp_path / "run" / name
    path.write_text(deep + "\n" + deep + "\n")
    code, out, err = summarize(path if name == "runs.json" else tmp_path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path) in err


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
