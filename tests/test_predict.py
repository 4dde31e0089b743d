"""predict.py as people start it: classes by name, and what it refuses."""

import re

import pytest
import torch
from PIL import Image

import datasets
import predict
from training.build.model import build_model
from training.settings.command_line import parse_args


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """The trained run's checkpoint, which knows its classes by these names."""
    path = tmp_path_factory.mktemp("named") / "checkpoint.pth"
    torch.save(torch.load(trained / "checkpoint.pth", weights_only=True) | {"classes": ["bright", "dark"]}, path)
    return path


@pytest.fixture
def predicted(checkpoint, capsys):
    """Start predict.py; returns what it printed: lines, lines about errors, exit code."""

    def call(*args, resume=checkpoint):
        with pytest.raises(SystemExit) as exit_:
            predict.main([*map(str, args), "--resume", str(resume)])
        printed = capsys.readouterr()
        return printed.out.splitlines(), printed.err.splitlines(), exit_.value.code

    return call


def files(images):
    return sorted((images / "val").rglob("*.png"))


def test_each_image_is_a_line_of_classes_with_probabilities(predicted, images):
    lines, errors, code = predicted(*files(images))
    assert (len(lines), errors, code) == (6, [], 0)
    for path, line in zip(files(images), lines, strict=True):
        found = re.fullmatch(rf"{path}: (bright|dark) (\S+) %, (bright|dark) (\S+) %", line)
        assert {found[1], found[3]} == {"bright", "dark"}
        assert float(found[2]) >= float(found[4])
        assert float(found[2]) + float(found[4]) == pytest.approx(100, abs=0.011)
    assert len({line.partition(": ")[2] for line in lines}) == 6


def test_probabilities_are_those_of_evaluation(predicted, checkpoint, images):
    """The run's own fusion and transform."""
    args = parse_args(["--data-set", "FOLDER", "--data-path", str(images), "--input-size", "8"])
    saved = torch.load(checkpoint, weights_only=True)
    model = build_model(args, num_classes=2)
    model.load_state_dict(saved["model"])
    predict.fuse(model, parse_args("--fusion-strategy upper --fusion-layer 3 --fusion-token 2".split()))
    test_set, _ = datasets.build_dataset(False, args)
    logits = model.eval()(test_set[0][0].unsqueeze(0))
    chance = 100 * logits.softmax(dim=1)[0].max().item()
    (line,), _, _ = predicted(test_set.images[0], "--topk", 1)
    assert f" {chance:.2f} %" in line
    assert "," not in line
    assert predicted(test_set.images[0], "--topk", 1, "--fusion-strategy", "no")[0] != [line]
    for by_sigmoids in ("bce_loss", "cosub"):
        path = checkpoint.with_name(f"{by_sigmoids}.pth")
        torch.save(saved | {"settings": saved["settings"] | {by_sigmoids: True}}, path)
        (line,), _, _ = predicted(test_set.images[0], "--topk", 1, resume=path)
        assert f" {100 * logits.sigmoid()[0].max().item():.2f} %" in line


def test_classes_without_names_are_numbers(predicted, checkpoint, images):
    saved = torch.load(checkpoint, weights_only=True)
    del saved["classes"]
    torch.save(saved, checkpoint.with_name("old.pth"))
    (line,), _, _ = predicted(files(images)[0], resume=checkpoint.with_name("old.pth"))
    assert {"class 0", "class 1"} == set(re.findall(r"class \d", line))


def test_weights_alone_with_the_models_name(predicted, checkpoint, images):
    """Grey ones, and cropped as flags say."""
    args = parse_args("--model vim_nano_patch4_32 --input-size 64 --in-chans 1".split())
    torch.manual_seed(0)
    torch.save(build_model(args, num_classes=7).state_dict(), checkpoint.with_name("weights.pth"))
    flags = "--model vim_nano_patch4_32 --in-chans 1 --input-size 64".split()
    plain, cropped = (
        predicted(files(images)[0], *flags, *more, resume=checkpoint.with_name("weights.pth"))[0]
        for more in ((), ("--eval-crop-ratio", 0.3))
    )
    assert plain[0].count("class ") == 5
    assert cropped != plain


def test_an_image_that_cannot_be_read_is_one_line_and_the_others_go_on(predicted, images, tmp_path):
    good = files(images)[0]
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "text.jpg").write_text("no image")
    bad = [tmp_path / "cut.png", tmp_path / "text.jpg", tmp_path / "gone.jpg", tmp_path]
    lines, errors, code = predicted(*bad, good)
    assert [line.partition(":")[0] for line in lines] == [str(good)]
    assert code == 1
    for path, error, reason in zip(bad, errors, ("broken image", "no image", "No such file", "Is a dir"), strict=True):
        assert error.startswith(f"predict.py: error: {path}: {reason}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topk", 0), "--topk: must be 1 or more"),
        (("--device", "tpu"), "--device tpu"),
        (("--model", "vim_pico"), "did you mean vim_pico_patch2_8"),
        (("--fusion-strategy", "all", "--fusion-token", 9), "can fuse at most 8, not 9"),
        (("--images", 3), "unknown argument --images"),
    ],
)
def test_what_is_wrong_is_one_line(predicted, images, flags, message):
    _, (line,), code = predicted(files(images)[0], *flags)
    assert line.startswith("predict.py: error: ")
    assert message in line
    assert code == 2


def test_a_model_without_a_head_cannot_classify(predicted, checkpoint, images):
    saved = torch.load(checkpoint, weights_only=True)
    saved["model"] = {name: weight for name, weight in saved["model"].items() if not name.startswith("head.")}
    torch.save(saved, checkpoint.with_name("headless.pth"))
    _, (line,), _ = predicted(files(images)[0], resume=checkpoint.with_name("headless.pth"))
    assert "headless.pth: has no head to classify with" in line


def test_without_images_there_is_nothing_to_do(capsys, checkpoint):
    with pytest.raises(SystemExit):
        predict.main(["--resume", str(checkpoint)])
    assert "required: IMAGE" in capsys.readouterr().err


def test_images_of_any_mode_and_size(predicted, tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (40, 23)).save(tmp_path / f"{mode}.png")
    lines, errors, code = predicted(*sorted(tmp_path.glob("*.png")))
    assert (len(lines), errors, code) == (3, [], 0)
