"""Files of the Hugging Face hub: from its cache, or with one line about why not."""

import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub import REVISION, put
from training.state import checkpoint, hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the hub itself can't be reached, as nothing can from a test (tests/hiding.py)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def answering(monkeypatch):
    """Let the hub answer with an error; returns what it was asked."""

    def answer(error):
        asked = Mock(side_effect=error)
        monkeypatch.setattr(hub, "get_hf_file_metadata", asked)
        return asked

    return answer


@pytest.mark.parametrize("name", ["hf_hub:a/b/c.pth", "hf-hub:a/b/c.pth", f"hf_hub:a/b@{REVISION}/c.pth"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_file_in_the_cache_needs_no_network(cache, monkeypatch, name, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    path = put(cache, "a/b", "c.pth", {"a": 1})
    assert hub.is_on_hub(name)
    assert hub.local_path(name) == str(path)


def test_without_a_file_it_is_timms(cache):
    path = put(cache, "a/b", "model.safetensors", {})
    assert hub.local_path("hf-hub:a/b") == str(path)


def test_a_file_in_a_folder(cache):
    path = put(cache, "a/b", "runs/c.pth", {})
    assert hub.local_path("hf-hub:a/b/runs/c.pth") == str(path)


def test_paths_are_no_files_of_the_hub():
    assert not hub.is_on_hub("./hf_hub/x.pth")


def test_without_a_network_it_is_said_at_once(cache, monkeypatch):
    """The hub's client alone would wait and ask again, 23 seconds in all."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    with pytest.raises(
        ValueError, match=r"^the Hugging Face hub can't be reached \(.*\), and its cache lacks the file"
    ):
        hub.local_path("hf_hub:a/b/c.pth")


def test_the_hub_is_asked_once(cache, answering):
    asked = answering(ConnectionError("Network is unreachable"))
    with pytest.raises(ValueError, match=r"\(Network is unreachable\)"):
        hub.local_path("hf_hub:a/b/c.pth")
    asked.assert_called_once()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (EntryNotFoundError, "there is no such file"),
        (RevisionNotFoundError, "there is no such revision"),
        (RepositoryNotFoundError, "there is no such repository"),
    ],
)
def test_what_the_hub_lacks(cache, answering, kind, told):
    error = kind.__new__(kind)  # its arguments differ between versions
    answering(error)
    with pytest.raises(ValueError, match=f"^{told}"):
        hub.local_path("hf_hub:a/b/c.pth")


def test_offline_by_choice(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids to ask"):
        hub.local_path("hf_hub:a/b/c.pth")


def test_a_download_that_breaks_off(cache, monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", Mock())
    monkeypatch.setattr(hub, "hf_hub_download", Mock(side_effect=OSError("No space left on device\nat all")))
    with pytest.raises(ValueError, match=r"^can't be downloaded \(No space left on device\)$"):
        hub.local_path("hf_hub:a/b/c.pth")


@pytest.mark.parametrize("name", ["hf_hub:", "hf_hub:a", "hf_hub:/b/c.pth", "hf_hub:a//c.pth", "hf_hub:a/..b/c.pth"])
def test_names_of_another_form(cache, name):
    with pytest.raises(ValueError, match=r"must be hf_hub:OWNER/REPOSITORY/FILE|Repo id must"):
        hub.local_path(name)


def test_a_checkpoint_names_the_flag_and_the_file(cache):
    with pytest.raises(ValueError, match="^--finetune hf_hub:a/b/c.pth: the Hugging Face hub can't be reached"):
        checkpoint.load("hf_hub:a/b/c.pth", "--finetune")
    put(cache, "a/b", "c.pth", {"model": {}})
    with pytest.raises(ValueError, match="^--finetune hf_hub:a/b/c.pth: its model is not a table"):
        checkpoint.load("hf_hub:a/b/c.pth", "--finetune")


def test_the_sum_of_a_file_on_the_hub(cache, tmp_path):
    put(cache, "a/b", "c.pth", {"model": {"weight": torch.zeros(1)}})
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(hub.local_path("hf_hub:a/b/c.pth")).read_bytes())
    assert checkpoint.sha256("hf_hub:a/b/c.pth") == checkpoint.sha256(str(copy))
    with pytest.raises(ValueError, match="^--resume gone.pth: no such file"):
        checkpoint.sha256("gone.pth")
