"""visualize.py as people start it: the pictures it leaves, and what it refuses."""

import pytest
from PIL import Image

import visualize


@pytest.fixture
def pictures(trained, tmp_path, capsys):
    """Start visualize.py on the trained run; returns the pictures by name and what was printed."""

    def call(*flags):
        visualize.main(["--resume", str(trained / "checkpoint.pth"), "--output_dir", str(tmp_path), *map(str, flags)])
        found = {path.stem: Image.open(path).convert("RGB") for path in tmp_path.glob("*.png")}
        return found, capsys.readouterr().out

    return call


@pytest.fixture
def error(trained, tmp_path, failing):
    def call(*flags):
        places = ["--resume", str(trained / "checkpoint.pth"), "--output_dir", str(tmp_path)]
        line = failing(visualize.main, [*places, *map(str, flags)])
        assert line.startswith("visualize.py: error: ")
        return line

    return call


def test_pictures_of_a_test_image(pictures, tmp_path):
    found, out = pictures()
    assert set(found) == {"groups", "similarity", "tokens", "redundancy"}
    assert out.split() == [str(tmp_path / f"{name}.png") for name in ("groups", "similarity", "tokens", "redundancy")]
    for picture in found.values():
        assert min(picture.size) > 200
        assert len(picture.getcolors(maxcolors=2**24)) > 10


def test_another_index_and_other_layers_are_other_pictures(pictures):
    first, _ = pictures()
    other, _ = pictures("--index", 5)
    assert first["groups"].tobytes() != other["groups"].tobytes()
    assert first["redundancy"].tobytes() == other["redundancy"].tobytes()
    layers, _ = pictures("--layers", 0, 5)
    assert layers["groups"].width < first["groups"].width
    fewer, _ = pictures("--images", 2)
    assert fewer["redundancy"].tobytes() != first["redundancy"].tobytes()


def test_an_image_of_ones_own(pictures, tmp_path):
    Image.radial_gradient("L").save(tmp_path / "own.jpg")
    found, _ = pictures("--image", tmp_path / "own.jpg")
    assert set(found) == {"groups", "similarity", "tokens"}


def test_data_sets_of_timm(pictures, images):
    own, _ = pictures()
    found, _ = pictures("--data-set", "torch/image_folder", "--data-path", images)
    assert found["groups"].tobytes() == own["groups"].tobytes()


def test_an_image_needs_no_data_set(pictures, tmp_path):
    Image.radial_gradient("L").save(tmp_path / "own.jpg")
    assert "groups" in pictures("--image", tmp_path / "own.jpg", "--data-set", "wds/x", "--data-path", ".")[0]


def test_the_runs_own_directory_is_left_alone(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.iterdir())
    visualize.main(["--resume", str(trained / "checkpoint.pth"), "--images", "2"])
    assert sorted(trained.iterdir()) == before
    assert (tmp_path / "pictures" / "groups.png").exists()


def test_fusion_of_the_run_or_of_the_flags(pictures):
    own, _ = pictures()
    other, _ = pictures("--fusion-strategy", "all", "--fusion-token", 1)
    assert own["tokens"].tobytes() != other["tokens"].tobytes()
    again, _ = pictures("--fusion-strategy", "upper", "--fusion-layer", 3, "--fusion-token", 2)
    assert own["tokens"].tobytes() == again["tokens"].tobytes()


def test_without_fusion_it_says_what_to_give_and_draws_the_rest(pictures, tmp_path):
    found, out = pictures("--fusion-strategy", "no")
    assert set(found) == {"similarity", "redundancy"}
    *files, note = out.splitlines()
    assert files == [str(tmp_path / f"{name}.png") for name in ("similarity", "redundancy")]
    assert note.startswith("no groups.png and tokens.png: ")
    assert "checkpoint.pth fuses no tokens; to see what would fuse, give --fusion-strategy all" in note


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--index", 6), "--index 6: the data set has 6 test images"),
        (("--layers", 6), "--layers 6: the model's layers are 0 to 5"),
        (("--image", "/nowhere.png"), "--image /nowhere.png: No such file or directory"),
        (("--image", __file__), "test_visualize.py: no image"),
        (("--image", __file__, "--index", 3), "--image: is looked at instead of the data set"),
        (("--model", "vim_nano_patch4"), "--model vim_nano_patch4: no such name, did you mean vim_nano_patch4_32"),
        (("--data-set", "wds/x", "--data-path", "."), "--data-set wds/x: is a stream"),
        (("--fusion-strategy", "all", "--fusion-token", 9), "can fuse at most 8, not 9"),
        (("--data-set", "DIGIT"), "did you mean DIGITS"),
        (("--indx", 3), "unknown argument --indx, did you mean --index"),
        (("--resume", "/nowhere.pth"), "--resume /nowhere.pth: no such file"),
        (("--output_dir", f"{__file__}/out"), "/out: can't be written (Not a directory)"),
    ],
)
def test_what_is_wrong_is_one_line(error, flags, message):
    assert message in error(*flags)
