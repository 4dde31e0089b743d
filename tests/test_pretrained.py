"""Published weights: found by timm's own way, in main.py, and never by running what a file brings.

No hub is reached: a cache holds files of the published kind, with real names and shapes and invented values.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

import main
import models_mamba
import predict
from models_mamba import checkpoint_filter_fn, class_token_positions, published_weights
from tests.hub import KEYS, published_file, put

ROOT = Path(__file__).parents[1]
TINY = "vim_tiny_patch16_224"
REPOSITORY, FILE = "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"
FLAGS = f"--model {TINY} --input-size 32 --num_workers 0 --batch-size 8 --epochs 1 --no-aug --no-repeated-aug".split()
PATCHES = "patch_embed.proj.weight"
NEARLY_STILL = "--lr 1e-9 --sched constant --warmup-epochs 0 --weight-decay 0".split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the hub that holds the published file of the tiny model."""
    folder = tmp_path_factory.mktemp("hub")
    put(folder, REPOSITORY, FILE, published_file(TINY))
    return folder


@pytest.fixture
def file(cache, monkeypatch):
    """What the published file holds; the hub's cache is the one that has it, and the hub is not asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return published_file(TINY)


@pytest.fixture
def run(file, images, capsys):
    """Run main.py with the tiny model on the small folder; returns what it printed."""

    def call(*flags):
        main.main([*FLAGS, "--data-set", "FOLDER", "--data-path", str(images), *map(str, flags)])
        return capsys.readouterr().out

    return call


# timm's own way


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vim_tiny_patch16_224", ("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", "model")),
        ("vim_tiny_patch16_stride8_224", ("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", "model")),
        ("vim_small_patch16_224", ("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", "model")),
        ("vim_small_patch16_stride8_224", ("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", "model")),
        ("vim_base_patch16_224", ("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", "model_ema")),
    ],
)
def test_every_published_model_names_its_file(monkeypatch, name, file):
    (published,) = (key for key in KEYS if key.startswith(f"{name}_bimamba"))
    small = timm.create_model("vim_pico_patch2_8")
    for known in (name, published):
        cfg = get_pretrained_cfg(known)
        assert (cfg.hf_hub_id, cfg.hf_hub_filename) == file[:2]
        assert published_weights(known) == file
        assert timm.models.is_model_pretrained(known)
        monkeypatch.setattr(models_mamba, "build_model_with_cfg", lambda *args, **kwargs: kwargs)
        filter_fn = timm.models.model_entrypoint(known)()["pretrained_filter_fn"]
        weights = {"model": {"a": 0}, "model_ema": {"a": 1}}
        assert filter_fn(weights, small) == weights[file[2]]


@pytest.mark.parametrize("name", ["vim_pico_patch2_8", "vim_nano_patch4_32"])
def test_other_models_have_none(name):
    assert published_weights(name) is None
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_timm_loads_them(file):
    model = timm.create_model(TINY, pretrained=True)
    loaded = model.state_dict()
    for key, value in checkpoint_filter_fn(file, model).items():
        assert torch.equal(loaded[key], value), key


def test_timm_loads_them_for_grey_images_of_another_size_and_other_classes(file):
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=True, in_chans=1, img_size=(64, 96), num_classes=5)
    loaded = model.state_dict()
    torch.testing.assert_close(loaded[PATCHES], file["model"][PATCHES].sum(dim=1, keepdim=True))
    assert loaded["pos_embed"].shape == (1, 25, 192)
    assert torch.equal(
        loaded["pos_embed"][:, class_token_positions("middle", 24)[0]], file["model"]["pos_embed"][:, 98]
    )
    assert loaded["head.weight"].shape == (5, 192)
    assert model.eval()(torch.randn(2, 1, 64, 96)).isfinite().all()


def test_timm_loads_them_as_a_backbone(file):
    model = timm.create_model(TINY, pretrained=True, features_only=True, img_size=64, out_indices=(1,))
    assert torch.equal(model.model.patch_embed.proj.weight, file["model"][PATCHES])
    assert model(torch.randn(1, 3, 64, 64))[0].shape == (1, 192, 4, 4)


def test_an_average_that_a_file_lacks(file):
    model = timm.create_model("vim_pico_patch2_8")
    bare = model.state_dict()
    assert list(checkpoint_filter_fn(bare, model, "model_ema")) == list(bare)
    with pytest.raises(ValueError, match="the checkpoint holds no model_ema"):
        checkpoint_filter_fn({"model": bare, "model_ema": None}, model, "model_ema")


def test_in_a_process_of_its_own(cache):
    """By the environment that people set."""
    program = (
        f"import timm, models_mamba; print(timm.create_model('{TINY}', pretrained=True).norm_f.weight.sum().item())"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert float(printed.stdout) == pytest.approx(published_file(TINY)["model"]["norm_f.weight"].sum().item())


# main.py


@pytest.mark.parametrize(
    ("flags", "entry"),
    [
        (["--pretrained"], "model"),
        (["--pretrained", "--finetune-ema"], "model_ema"),
        (["--finetune", f"hf_hub:{REPOSITORY}/{FILE}"], "model"),
        (["--finetune", f"hf_hub:{REPOSITORY}/{FILE}", "--finetune-ema", "--in-chans", "1"], "model_ema"),
    ],
)
def test_a_training_starts_from_them(run, file, tmp_path, flags, entry):
    """The patches' filters and the norm's weights hardly move in one step of a rate of nearly 0."""
    out = run(*flags, *NEARLY_STILL, "--output_dir", tmp_path)
    told = (
        f"hf_hub:{REPOSITORY}/{FILE}{', its model_ema' if entry == 'model_ema' else ''}, with a new head for 2 classes"
    )
    assert f"weights    {told}\n" in out
    settings = json.loads((tmp_path / "args.json").read_text())
    assert (settings["weights"], settings["finetune_ema"]) == (told, entry == "model_ema")
    trained = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model"]
    torch.testing.assert_close(trained["norm_f.weight"], file[entry]["norm_f.weight"], atol=1e-6, rtol=0)
    patches = file[entry][PATCHES]
    expected = patches.sum(dim=1, keepdim=True) if "--in-chans" in flags else patches
    torch.testing.assert_close(trained[PATCHES], expected, atol=1e-6, rtol=0)


def test_the_head_is_kept_for_as_many_classes(run, file, tmp_path):
    out = run("--pretrained", "--nb-classes", 1000, *NEARLY_STILL, "--output_dir", tmp_path)
    assert f"weights    hf_hub:{REPOSITORY}/{FILE}\n" in out
    trained = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model"]
    torch.testing.assert_close(trained["head.weight"], file["model"]["head.weight"], atol=1e-6, rtol=1e-4)


def test_both_weights_are_evaluated(run, tmp_path):
    """The command that the pages give, with --resume for a file of one's own."""
    for flags in (["--pretrained"], ["--resume", f"hf_hub:{REPOSITORY}/{FILE}"]):
        out = run("--eval", *flags, "--nb-classes", 1000, "--output_dir", tmp_path)
        assert out.count("top-1") == 2
        assert "EMA: top-1" in out
        found = json.loads((tmp_path / "scores.json").read_text())
        assert found["settings"]["weights"] == f"hf_hub:{REPOSITORY}/{FILE}"
        assert found["scores"]["model"] != found["scores"]["EMA"]


def test_images_are_classified_by_them(file, images, capsys):
    picture = str(next(images.rglob("*.png")))
    with pytest.raises(SystemExit) as exit_:
        predict.main([picture, "--resume", f"hf_hub:{REPOSITORY}/{FILE}", "--model", TINY, "--input-size", "32"])
    assert exit_.value.code == 0
    assert f"{picture}: class " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--pretrained", "--model", "vim_small_patch16_224"], "--pretrained hf_hub:hustvl/Vim-small-midclstok/vim_s_"),
        (["--finetune", f"hf_hub:{REPOSITORY}/x.pth"], f"--finetune hf_hub:{REPOSITORY}/x.pth: the cache of the Hug"),
        (["--eval", "--pretrained", "--model", "vim_nano_patch4_32"], "--pretrained: there are weights of vim_tiny_"),
        (["--pretrained", "--model", "vim_nano_patch4_32"], "not of --model vim_nano_patch4_32"),
        (["--eval", "--pretrained", "--model", "vim_tiny_patch16"], "not of --model vim_tiny_patch16"),
        (["--eval", "--pretrained"], "does not fit this model: 2 of another shape (first: head.weight"),
    ],
)
def test_what_is_refused_is_one_line(error, flags, complaint):
    assert complaint in error(*flags)


def test_a_file_without_an_average(error, cache, file):
    put(cache, "a/b", "c.pth", {"model": file["model"], "model_ema": None})
    line = error("--finetune", "hf_hub:a/b/c.pth", "--finetune-ema")
    assert "--finetune hf_hub:a/b/c.pth: holds no model_ema, which --finetune-ema asks for" in line


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_file_that_would_run_code(error, cache, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(cache, "a/b", "c.pth", file | {"args": RunsCode()})
    assert "hf_hub:a/b/c.pth: not a checkpoint of tensors and plain data" in error("--finetune", "hf_hub:a/b/c.pth")
    put(cache, "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", {"model": RunsCode()})
    with pytest.raises(RuntimeError, match="weights_only=True blocked"):
        timm.create_model("vim_small_patch16_224", pretrained=True)
    assert not (tmp_path / "ran").exists()
