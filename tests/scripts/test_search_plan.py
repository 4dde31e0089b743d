"""The search for a plan on a trained model: what it prints and keeps, that it continues, and what it refuses."""

import json

import pytest
from PIL import Image

import fusion
from scripts import search_plan
from scripts.under_plans import Fused


@pytest.fixture
def searched(trained, capsys):
    """Search on the trained run; returns what was printed."""

    def call(*flags):
        small = ("--cost", "0.9", "--images", "8", "--moves", "12", "--device", "cpu", "--num_workers", "0")
        search_plan.main(["--resume", str(trained / "checkpoint.pth"), *small, *map(str, flags)])
        return capsys.readouterr().out

    return call


def plan_of(out):
    (line,) = [line for line in out.splitlines() if line.startswith("--fusion-plan ")]
    return tuple(map(int, line.split()[1].split(",")))


def table(out):
    lines = [line for line in out.split("never saw:")[1].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_what_is_found_and_printed(searched, tmp_path):
    out = searched("--output_dir", tmp_path)
    plan, rows = plan_of(out), table(out)
    assert len(plan) == 6
    assert "seed 0" in out.splitlines()[0]
    assert [name.partition(":")[0] for name in rows] == ["no", "all", "interleaved", "lower", "upper", "searched"]
    assert float(rows["searched"]["cost"]) <= 0.9
    assert float(rows["searched"]["KL, search"]) <= min(
        float(row["KL, search"]) for name, row in rows.items() if name != "no" and float(row["cost"]) <= 0.9
    )
    assert rows["no"]["KL, test"] == "0.000"
    assert int(rows["searched"]["it alone"]) == int(rows["searched"]["searched alone"]) == 0
    assert int(rows["no"]["right"]) - int(rows["searched"]["right"]) == int(rows["no"]["it alone"]) - int(
        rows["no"]["searched alone"]
    )
    (blocks,) = [line for line in out.splitlines() if line.startswith("searched ")]
    assert blocks.split()[2:] == list(map(str, fusion.token_counts(plan, 17)))
    kept = json.loads((tmp_path / "search.json").read_text())
    assert kept["seed"] == 0
    assert kept["table"][-1]["plan"] == "searched"
    assert list(plan) in [row["plan"] for row in kept["rows"]]
    assert Image.open(tmp_path / "plans.png").width > 1000


def test_the_same_seed_finds_the_same_plan_and_another_other_images(searched, tmp_path):
    first, again = searched("--output_dir", tmp_path / "a"), searched("--output_dir", tmp_path / "b")
    assert first == again
    assert searched("--seed", 1).split("Divergence")[1] != first.split("Divergence")[1]


def test_an_interrupted_search_continues(searched, tmp_path, monkeypatch, capsys):
    whole = searched()
    measured, logits = [], Fused.logits

    def interrupted(self, plan, batches):
        measured.append(plan)
        if len(measured) == 20:
            raise KeyboardInterrupt
        return logits(self, plan, batches)

    monkeypatch.setattr(Fused, "logits", interrupted)
    with pytest.raises(SystemExit) as exit_:
        searched("--output_dir", tmp_path)
    assert exit_.value.code == 130
    assert "the same command continues" in capsys.readouterr().err
    kept = [tuple(row["plan"]) for row in json.loads((tmp_path / "search.json").read_text())["rows"]]
    assert kept == measured[1:-1]
    measured.clear()
    monkeypatch.setattr(Fused, "logits", lambda self, *args: measured.append(args[0]) or logits(self, *args))
    assert searched("--output_dir", tmp_path) == whole
    searching = measured[: measured.index(measured[0], 1)]  # until the test images begin without fusion
    assert not set(searching) & set(kept)


def test_flags_change_what_they_say(searched):
    first = searched()
    assert float(table(searched("--cost", 0.8))["searched"]["cost"]) <= 0.8
    assert searched("--images", 4).split("Divergence")[1] != first.split("Divergence")[1]
    assert searched("--fusion-metric", "residual").split("Divergence")[1] != first.split("Divergence")[1]
    assert "3 test images" in searched("--test-images", 3)
    few = table(searched("--moves", 0))["searched"]
    assert float(few["KL, search"]) >= float(table(first)["searched"]["KL, search"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cost", "0"), "--cost: must be 0 to 1, not 0"),
        (("--cost", "0.01"), "--cost 0.01 is less than any plan can reach: 0."),
        (("--resume", "/nowhere.pth"), "/nowhere.pth: no such file"),
        (("--data-set", "wds/x"), "is a stream"),
        (("--output_dir", f"{__file__}/out"), "/out: can't be written (Not a directory)"),
    ],
)
def test_what_is_wrong_is_one_line(searched, failing, flags, message):
    line = failing(searched, *flags)
    assert line.startswith("search_plan.py: error: ")
    assert message in line


def test_another_search_in_the_directory_is_refused(searched, tmp_path, capsys):
    searched("--output_dir", tmp_path)
    with pytest.raises(SystemExit):
        searched("--output_dir", tmp_path, "--seed", 1)
    assert "search.json: holds a search with another seed; choose another --output_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        searched("--output_dir", tmp_path, "--eval-crop-ratio", "0.5")
    assert "search.json: holds a search with another eval_crop_ratio" in capsys.readouterr().err
    kept = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps({name: kept[name] for name in kept if name != "in_chans"}))
    with pytest.raises(SystemExit):
        searched("--output_dir", tmp_path)
    assert "search.json: holds a search of an older version; choose another --output_dir" in capsys.readouterr().err
    (tmp_path / "search.json").write_text(json.dumps(kept))
    searched("--output_dir", tmp_path, "--cost", "0.8")  # what plans change does not depend on the cost
