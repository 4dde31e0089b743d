"""The benchmark of the data path: a rate for every number of loading processes, by the flags of a training."""

import json

import pytest

from scripts import bench_data


def bench(images, *flags):
    flags = ("--data-set", "FOLDER", "--data-path", images, "--batch-size", 4, "--seconds", 0.3, *flags)
    bench_data.main([str(flag) for flag in flags])


def test_a_rate_for_every_number_of_processes(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    bench(images, "--num_workers", 8, "--json", tmp_path / "data.json")
    out = capsys.readouterr().out
    assert "FOLDER, 16 images to (8, 8), batch 4" in out
    assert [line.split("|")[1].strip() for line in out.splitlines()[4:]] == ["none", "1", "2"]
    written = json.loads((tmp_path / "data.json").read_text())
    assert all(rate > 0 for rate in written["images_per_second"].values())
    assert len(written["images_per_second"]) == 3


def test_flags_of_a_training_count(images, capsys):
    """Images of 500 pixels take longer than those of 8."""
    rates = []
    for size in (8, 500):
        bench(images, "--num_workers", 0, "--model", "vim_pico_patch2_8", "--input-size", size)
        rates.append(float(capsys.readouterr().out.splitlines()[-1].split("|")[2]))
    assert rates[1] < rates[0] / 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data-path", "/nowhere"), "no folder"),
        (("--data-set", "wds/x"), "is a stream"),
        (("--seconds", "0"), "--seconds: must be above 0"),
        (("--batch-size", "3"), "must be even"),
    ],
)
def test_what_is_wrong_is_one_line(images, flags, message, failing):
    line = failing(bench, images, *flags)
    assert line.startswith("bench_data.py: error: ")
    assert message in line
