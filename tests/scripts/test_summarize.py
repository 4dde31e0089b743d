"""The table of runs."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "summarize.py"


def write_run(folder, strategy, tokens, accuracies, epochs=2):
    folder.mkdir()
    (folder / "args.json").write_text(
        json.dumps({"fusion_strategy": strategy, "token_counts": tokens, "last_epoch": epochs})
    )
    with open(folder / "log.txt", "w") as log:
        for i, accuracy in enumerate(accuracies):
            line = {
                "epoch": i,
                "test_acc1": accuracy,
                "train_seconds": 3.0 + i,
                "peak_memory_mb": 900 + i,
                "training_memory_mb": 100 - i,
            }
            log.write(json.dumps(line) + "\n")


def summarize(*runs):
    result = subprocess.run([sys.executable, SCRIPT, *runs], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def cells(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_a_row_for_every_run(tmp_path):
    write_run(tmp_path / "plain", "no", [17, 17, 17], [80.0, 90.5])
    write_run(tmp_path / "fused", "upper", [17, 17, 9], [70.0], epochs=4)
    code, out, _ = summarize(tmp_path / "plain", tmp_path / "fused")
    assert code == 0
    header, _, plain, fused = out.splitlines()
    assert cells(header)[:4] == ["run", "strategy", "epochs", "top-1 %"]
    assert cells(plain) == ["plain", "no", "2 of 2", "90.50", "3.5", "901", "100", "17 of 17"]
    assert cells(fused) == ["fused", "upper", "1 of 4", "70.00", "3.0", "900", "100", "9 of 17"]


def test_no_run_is_one_line(tmp_path):
    code, _, err = summarize(tmp_path)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert str(tmp_path) in err


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write_run(tmp_path / "running", "no", [17, 17], [80.0], epochs=4)
    with open(tmp_path / "running" / "log.txt", "a") as log:
        log.write('{"epoch": 1, "test_acc')
    code, out, err = summarize(tmp_path / "running")
    assert code == 0, err
    assert cells(out.splitlines()[-1])[:4] == ["running", "no", "1 of 4", "80.00"]
