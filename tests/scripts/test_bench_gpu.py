"""The timing on a GPU, tried on a CPU: a row that fails leaves the others."""

import json

import pytest

from scripts import bench_gpu


def test_a_row_that_can_not_be_built_leaves_the_others(tmp_path, monkeypatch, capsys):
    flags = "--device cpu --models vim_pico_patch2_8 --batch-size 2 --runs 1 --fuse all --json".split()
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", "train", *flags, str(tmp_path / "train.json")])
    with pytest.raises(SystemExit) as exit_:
        bench_gpu.main()
    rows = json.loads((tmp_path / "train.json").read_text())["train"]
    failed = [name for name, row in rows.items() if "failed" in row]
    assert len(failed) == 1 < len(rows)
    assert "can fuse at most 4, not 7" in rows[failed[0]]["failed"]
    assert str(exit_.value).startswith(f"bench_gpu: 1 of {len(rows)} rows failed")
