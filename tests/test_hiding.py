"""Tests see nothing that isn't in .venv, nor do the processes that they start."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch.hub
from huggingface_hub import constants

import datasets
from native import build
from tests import hiding
from training.settings.command_line import parse_args

ROOT = Path(__file__).parents[1]
PLACES = """
import json, datasets
from pathlib import Path
from matplotlib import get_cachedir, get_configdir
from torch import hub
from torch._inductor.runtime.cache_dir_utils import cache_dir
from huggingface_hub import constants
places = [Path.home(), hub.get_dir(), get_cachedir(), get_configdir(), cache_dir(), constants.HF_HOME]
print(*places, *datasets.debian_fmnist(), sep="\\n")
"""


def test_processes_look_for_caches_settings_and_data_in_an_empty_home():
    command = [sys.executable, "-c", PLACES]
    places = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(places) == 7
    assert all(Path(place).is_relative_to(os.environ["TESTS_HOME"]) for place in places), places


def test_so_does_this_process():
    home = os.environ["TESTS_HOME"]
    assert str(Path.home()) == home
    assert constants.HF_HOME.startswith(home)
    assert torch.hub.get_dir().startswith(home)


def test_a_data_set_of_the_system_is_not_there():
    args = parse_args(["--data-set", "FMNIST"])
    args = replace(args, input_size=(28, 28))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        datasets.build_dataset(True, args)


@pytest.mark.parametrize("url", ["http://example.com", "https://example.com"])
def test_the_network_is_not_there(url):
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_what_the_user_set_counts_for_nothing(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"SLURM_NTASKS": "4", "RANK": "3", "HF_HOME": "/x"})
    del os.environ["TESTS_HOME"]
    monkeypatch.setattr(hiding.hide, "home", None, raising=False)
    hiding.hide()
    assert not {"SLURM_NTASKS", "RANK", "HF_HOME"} & os.environ.keys()
    assert os.environ["HOME"] == hiding.hide.home.name


def test_without_a_compiler_no_build_is_found(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"CXX": "no-such-compiler"})
    del os.environ["TESTS_HOME"]
    monkeypatch.setattr(hiding.hide, "home", None, raising=False)
    hiding.hide()
    assert build.cache_directory().is_relative_to(os.environ["HOME"])
