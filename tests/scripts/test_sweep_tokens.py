"""The sweep over strategies and budgets, started as people do."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep_tokens.py"


def sweep(trained, *flags):
    command = [sys.executable, SCRIPT, "--resume", trained / "checkpoint.pth", *map(str, flags)]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_table_and_files(trained, tmp_path):
    flags = ("--strategies", "all", "upper:4", "--budgets", 6, 9, 12, "--rounds", 2, "--images", 4)
    code, out, err = sweep(trained, *flags, "--output_dir", tmp_path)
    assert code == 0, err
    assert "vim_pico_patch2_8, FOLDER, 4 test images" in out
    assert "left out: upper:4, 12 tokens: layer 5 has 10 patch tokens and can fuse at most 5, not 6" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    assert [row[:3] for row in rows] == [
        ["no", "0", "17"],
        ["all", "6", "11"],
        ["all", "9", "8"],
        ["all", "12", "5"],
        ["upper:4", "6", "11"],
        ["upper:4", "9", "8"],
    ]
    assert rows[0][6] == "1.00"
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["command"].startswith("python ")
    assert found["versions"]["torch"]
    macs = [row["mega_macs"] for row in found["rows"]]
    assert macs[0] > macs[1] > macs[2] > macs[3]
    with open(tmp_path / "sweep.csv") as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == [row[0] for row in rows]
    assert (tmp_path / "sweep.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--strategies", "uper:3", "--budgets", 4), "did you mean upper"),
        (("--strategies", "upper", "--budgets", 4), "--strategies upper: upper needs `layer`"),
        (("--strategies", "upper:x", "--budgets", 4), "--strategies upper:x: must be NAME or NAME:K"),
        (("--budgets", 0), "--budgets: must be 1 or more, not 0"),
    ],
)
def test_what_is_wrong_is_one_line(trained, flags, message):
    code, _, err = sweep(trained, *flags)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
