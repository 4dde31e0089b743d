"""The evaluation of trained models under plans: its table and files, what it keeps, and what it refuses."""

import csv
import json

import pytest
import torch
from PIL import Image

import main
from scripts import evaluate

QUICK = ("--device", "cpu", "--num_workers", "0", "--rounds", "1")


@pytest.fixture
def evaluated(trained, capsys):
    """Evaluate the trained run, or the checkpoints given; returns the table's rows by plan, and what was printed."""

    def call(*flags, checkpoints=()):
        files = checkpoints or [trained / "checkpoint.pth"]
        evaluate.main([*map(str, files), *QUICK, *map(str, flags)])
        out = capsys.readouterr().out
        head, _, *lines = [line for line in out.splitlines() if line.startswith("|")]
        names = [cell.strip() for cell in head.split("|")[1:-1]]
        rows = [dict(zip(names, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines]
        return {row["plan"]: row for row in rows}, out

    return call


@pytest.fixture
def error(trained, failing):
    def call(*flags, checkpoint=None):
        line = failing(evaluate.main, [str(checkpoint or trained / "checkpoint.pth"), *map(str, flags)])
        assert line.startswith("evaluate.py: error: ")
        return line

    return call


def test_table_and_files(evaluated, tmp_path):
    rows, out = evaluated("--plans", "no", "all=6,9,12", "upper:4=6,9,12", "--images", 4, "--output_dir", tmp_path)
    assert "left out: upper:4=12: layer 5 has 10 patch tokens and can fuse at most 5, not 6" in out
    assert [(name, row["fused"], row["left"]) for name, row in rows.items()] == [
        ("no", "0", "17"),
        ("all=6", "6", "11"),
        ("all=9", "9", "8"),
        ("all=12", "12", "5"),
        ("upper:4=6", "6", "11"),
        ("upper:4=9", "9", "8"),
    ]
    assert rows["no"]["x faster"] == "1.00"
    assert rows["no"]["cost"] == "1.000"
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["command"].startswith("python ")
    assert found["versions"]["torch"]
    assert {row["images"] for row in found["rows"]} == {4}
    macs, kept = ([row[name] for row in found["rows"][:4]] for name in ("mega_macs", "kept_mib"))
    assert macs == sorted(macs, reverse=True)
    assert kept == sorted(kept, reverse=True)
    with open(tmp_path / "evaluation.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["plan"] for line in lines] == list(rows)
    assert all(float(line["latency_ms"]) > 0 for line in lines)
    picture = Image.open(tmp_path / "evaluation.png").convert("RGB")
    assert len(picture.getcolors(maxcolors=2**24)) > 20


def test_scores_are_those_of_main(trained, evaluated, tmp_path):
    """Without plans, the run's own counts: upper, 3, 2."""
    rows, _ = evaluated("--output_dir", tmp_path / "evaluation")
    assert list(rows) == ["own"]
    assert rows["own"]["fused"] == "6"
    main.main(["--eval", "--resume", str(trained / "checkpoint.pth"), "--output_dir", str(tmp_path)])
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]["model"]
    (row,) = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["rows"]
    assert row["tokens"] == [0, 0, 0, 2, 2, 2]
    assert (row["acc1"], row["acc5"]) == (scores["acc1"], scores["acc5"])
    assert row["loss"] == pytest.approx(scores["loss"])


def test_the_runs_own_plan_is_clipped_as_it_was(trained, evaluated, tmp_path):
    saved = torch.load(trained / "checkpoint.pth", weights_only=True)
    saved["settings"] |= {"fusion_token": 7, "fusion_clip": True}
    torch.save(saved, tmp_path / "clipped.pth")
    rows, _ = evaluated(checkpoints=[tmp_path / "clipped.pth"])
    assert (rows["own"]["fused"], rows["own"]["left"]) == ("13", "4")  # 7, then 4 of 9 and 2 of 5 patches


def test_models_of_two_sizes(trained, images, evaluated, tmp_path):
    flags = "--data-set FOLDER --no-aug --mixup 0 --cutmix 0 --no-model-ema --epochs 1 --batch-size 8 --num_workers 0"
    more = ["--data-path", str(images), "--output_dir", str(tmp_path / "larger"), "--input-size", "12"]
    main.main([*flags.split(), *more])
    files = [trained / "checkpoint.pth", tmp_path / "larger" / "checkpoint.pth"]
    _, out = evaluated("--plans", "no", "all:3", "--output_dir", tmp_path, checkpoints=files)
    name = trained.name
    assert f"left out: all:3: layer 4 has 4 patch tokens and can fuse at most 2, not 3 ({name})" in out
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:] == [
        name,
        "larger",
        "larger",
    ]
    with open(tmp_path / "evaluation.csv") as file:
        small, large, fused = csv.DictReader(file)
    assert float(small["mega_macs"]) < float(fused["mega_macs"]) < float(large["mega_macs"])
    assert (small["checkpoint"], large["checkpoint"], fused["plan"]) == (name, "larger", "all:3")


def test_what_was_found_is_not_measured_again(evaluated, tmp_path, monkeypatch):
    flags = ("--plans", "no", "all:1", "--rounds", 2, "--output_dir", tmp_path)
    first, _ = evaluated(*flags)
    monkeypatch.setattr(evaluate, "evaluate", None)
    monkeypatch.setattr(evaluate, "time_forward", None)
    again, _ = evaluated(*flags)
    assert again == first
    monkeypatch.undo()
    more, _ = evaluated("--plans", "no", "all:2", "--output_dir", tmp_path)
    assert more["no"]["top-1 %"] == first["no"]["top-1 %"]
    kept = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [(row["plan"], len(row["seconds"])) for row in kept] == [("no", 1), ("all:1", 2), ("all:2", 1)]


@pytest.mark.parametrize("flags", [("--eval-crop-ratio", 0.5), ("--model-kwargs", "d_conv=4")])
def test_other_images_or_another_model_are_measured(evaluated, tmp_path, flags):
    for said in ((), flags, flags):
        evaluated("--plans", "no", "--images", 3, "--output_dir", tmp_path, *said)
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["rows"]) == 2


def test_rows_with_and_without_times(evaluated, tmp_path):
    timed, _ = evaluated("--plans", "no", "--output_dir", tmp_path)
    untimed, _ = evaluated("--plans", "all:1", "no", "--rounds", 0, "--output_dir", tmp_path)
    assert list(untimed) == ["all:1", "no"]
    assert "images/s" not in untimed["no"]
    again, _ = evaluated("--plans", "no", "--output_dir", tmp_path)
    assert again == timed


def test_an_interrupted_evaluation_continues(trained, evaluated, tmp_path, monkeypatch, capsys):
    scores = evaluate.evaluate

    def interrupted(model, *args, **kwargs):
        if kwargs["label"].endswith("all:1"):
            raise KeyboardInterrupt
        return scores(model, *args, **kwargs)

    flags = ("--plans", "no", "all:1", "--output_dir", str(tmp_path))
    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([str(trained / "checkpoint.pth"), *flags])
    assert exit_.value.code == 130
    assert f"the same command continues from {tmp_path}/evaluation.json" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *args, **kwargs: asked.append(kwargs) or scores(*args, **kwargs))
    evaluated(*flags)
    assert [kwargs["label"].split(", ")[1] for kwargs in asked] == ["all:1"]


def test_rounds_that_stopped_halfway_continue(evaluated, tmp_path):
    flags = ("--plans", "no", "all:1", "--output_dir", tmp_path)
    evaluated(*flags, "--rounds", 3)
    file = tmp_path / "evaluation.json"
    kept = json.loads(file.read_text())
    first = kept["rows"][0]["seconds"]
    del kept["rows"][1]["seconds"][2:]
    file.write_text(json.dumps(kept))
    evaluated(*flags, "--rounds", 3)
    after = json.loads(file.read_text())["rows"]
    assert [len(row["seconds"]) for row in after] == [3, 3]
    assert after[0]["seconds"][:2] == first[:2]
    assert after[0]["seconds"][2] != first[2]


def test_times_of_another_machine_do_not_count(evaluated, tmp_path, monkeypatch):
    flags = ("--plans", "no", "--rounds", 2, "--output_dir", tmp_path)
    evaluated(*flags)
    monkeypatch.setattr(evaluate, "device_name", lambda device: "another")
    before = json.loads((tmp_path / "evaluation.json").read_text())["rows"][0]["seconds"]
    evaluated(*flags)
    after = json.loads((tmp_path / "evaluation.json").read_text())["rows"][0]["seconds"]
    assert len(after) == 2
    assert before != after


def test_flags_change_what_they_say(evaluated, tmp_path):
    file = tmp_path / "evaluation.json"

    def row(*flags):
        evaluated("--plans", "all:2", "--output_dir", tmp_path, *flags)
        return json.loads(file.read_text())["rows"][-1]

    first = row()
    untimed, _ = evaluated("--plans", "all:2", "--rounds", 0)
    assert "images/s" not in untimed["all:2"]
    assert row("--eval_batch_size", 2)["kept_mib"] < first["kept_mib"]
    assert row("--images", 3)["loss"] != first["loss"]
    assert row("--fusion-metric", "residual")["loss"] != first["loss"]


def test_the_method_of_the_run_counts(trained, evaluated, tmp_path):
    """As main.py evaluates it: what a run says of its fusion is not lost under other plans."""
    saved = torch.load(trained / "checkpoint.pth", weights_only=True)
    saved["settings"]["fusion_metric"] = "residual"
    torch.save(saved, tmp_path / "residual.pth")
    evaluated("--plans", "all:2", "--output_dir", tmp_path, checkpoints=[tmp_path / "residual.pth"])
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert row["method"]["metric"] == "residual"
    assert row["checkpoint"] == "residual"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--plans", "uper:3"), "--plans uper:3: unknown `strategy` uper (did you mean upper?)"),
        (("--plans", "upper:3"), "--plans upper:3: upper needs `layer`, 0 to 5 for 6 layers"),
        (("--plans", "no", "upper:x"), "--plans upper:x: must be no, STRATEGY[:LAYER]:TOKENS"),
        (("--plans", "all:9"), "--plans all:9: layer 0 has 16 patch tokens and can fuse at most 8, not 9"),
        (("--images", "0"), "--images: must be 1 or more, not 0"),
        (("--plan", "no"), "unknown argument --plan, did you mean --plans"),
        (("--data-path", "/nowhere"), "/nowhere"),
        (("--data-set", "wds/x"), "is a stream"),
        (("--output_dir", f"{__file__}/out"), "/out: can't be written (Not a directory)"),
    ],
)
def test_what_is_wrong_is_one_line(error, flags, message):
    assert message in error(*flags)


def test_a_file_that_is_something_else_is_one_line(error, tmp_path):
    assert "nowhere.pth: no such file" in error(checkpoint=tmp_path / "nowhere.pth")
    (tmp_path / "evaluation.json").write_text("[]")
    assert "evaluation.json: holds no findings" in error("--output_dir", tmp_path)
