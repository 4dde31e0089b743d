"""The benchmark of training steps: a row for each contender, plans as everywhere, figures in a file."""

import json

import pytest

from scripts import bench_train

QUICK = ("--model", "vim_pico_patch2_8", "--batch-size", "2", "--runs", "1", "--reference-runs", "1")


def test_a_row_for_every_contender(tmp_path, capsys):
    flags = ("--fuse", "all:1,2", "upper:4@0.95", "half:0,8,0,0,0,0", "--json", str(tmp_path / "out" / "train.json"))
    bench_train.main([*QUICK, *flags])
    assert "| cutting all:1 | " in capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "train.json").read_text())["steps"]
    assert list(figures) == [
        "reference scan",
        "no fusion",
        "no fusion, recomputing the scan",
        "no fusion, checkpointing layers",
        "fusing all:1",
        "cutting all:1",
        "fusing all:2",
        "cutting all:2",
        "fusing upper:4@0.95",
        "cutting upper:4@0.95",
        "fusing half",
        "cutting half",
    ]
    kept = {name: row["kept_mib"] for name, row in figures.items()}
    assert kept["no fusion"] > kept["fusing all:1"] > kept["fusing all:2"]
    assert kept["no fusion"] > kept["no fusion, recomputing the scan"] > kept["no fusion, checkpointing layers"]
    assert kept["fusing all:2"] > kept["cutting all:2"] > 0.8 * kept["fusing all:2"]  # without what merging keeps
    assert figures["cutting half"]["mean_tokens"] == figures["fusing half"]["mean_tokens"]
    assert figures["fusing half"]["mean_tokens"] == pytest.approx((17 * 2 + 9 * 4) / 6)


def test_the_slow_reference_can_be_left_out(tmp_path):
    file = tmp_path / "train.json"
    bench_train.main([*QUICK, "--fuse", "all:1", "--reference-runs", "0", "--json", str(file)])
    assert next(iter(json.loads(file.read_text())["steps"])) == "no fusion"


def test_models_of_other_depths(tmp_path):
    file = tmp_path / "train.json"
    bench_train.main([*QUICK, "--reference-runs", "0", "--fuse", "all:1", "--depths", "3", "2", "--json", str(file)])
    kept = {name: row["kept_mib"] for name, row in json.loads(file.read_text())["steps"].items()}
    assert kept["no fusion"] > kept["no fusion, 3 layers"] > kept["no fusion, 2 layers"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("uper:3", "--fuse uper:3: unknown `strategy` uper (did you mean upper?)"),
        ("all:1,9", "--fuse all:9: layer 0 has 16 patch tokens and can fuse at most 8, not 9"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(capsys, word, message):
    with pytest.raises(SystemExit):
        bench_train.main([*QUICK, "--fuse", word])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_that_is_not_there_is_an_error(capsys):
    with pytest.raises(SystemExit):
        bench_train.main(["--model", "vim_nano_patch4"])
    assert "--model: model vim_nano_patch4: no such name, did you mean vim_nano_patch4_32?" in capsys.readouterr().err
