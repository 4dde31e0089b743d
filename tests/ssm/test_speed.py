"""What was measured decides between backends, as long as it was measured with what is here."""

import json

import pytest
import torch

import ssm
import ssm.__main__ as program
from ssm import cuda, speed, triton


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    speed._remembered.cache_clear()
    yield tmp_path / "cache"
    speed._remembered.cache_clear()


@pytest.fixture
def both(monkeypatch):
    for module in (triton, cuda):
        monkeypatch.setattr(module, "unavailable", lambda: None)


def test_triton_where_nothing_was_measured(both):
    name, reason = ssm.pick("cuda")
    assert name == "triton"
    assert "python -m ssm measures" in reason


@pytest.mark.parametrize(("times", "name"), [((0.3, 0.2), "cuda"), ((0.2, 0.3), "triton")])
def test_the_faster_of_two(both, times, name):
    speed.remember(dict(zip(("triton", "cuda"), times, strict=True)))
    assert ssm.pick("cuda").name == name
    assert "0.20 ms as python -m ssm measured, where" in ssm.pick("cuda").reason
    assert "took 0.30" in ssm.pick("cuda").reason
    with ssm.use_backend("triton"):
        assert ssm.pick("cuda") == ("triton", "as asked for")


def test_what_failed_when_it_was_measured(both):
    speed.remember({"cuda": 0.2})
    assert ssm.pick("cuda") == ("cuda", "0.20 ms as python -m ssm measured, where triton failed")


def test_the_report_keeps_what_it_measured_on_a_gpu(monkeypatch):
    times = {("triton", "cuda"): 3e-4, ("cuda", "cuda"): 2e-4, ("reference", "cuda"): 1e-4, ("triton", "cpu"): 9.0}
    kept = json.loads(program.keep(times).read_text())["milliseconds"]
    assert kept == pytest.approx({"triton": 0.3, "cuda": 0.2})
    assert program.keep({("cpu", "cpu"): 1.0}) is None


def test_only_what_can_run_counts(both, monkeypatch):
    speed.remember({"triton": 0.3, "cuda": 0.2})
    monkeypatch.setattr(cuda, "unavailable", lambda: "no mamba-ssm")
    assert ssm.pick("cuda") == ("triton", "the fastest here")


@pytest.mark.parametrize("key", ["gpu", "versions"])
def test_measured_on_another_gpu_or_with_other_versions(both, key):
    path = speed.remember({"triton": 0.3, "cuda": 0.2})
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {key: "another"}))
    speed._remembered.cache_clear()
    assert ssm.pick("cuda").name == "triton"


@pytest.mark.parametrize("text", ["", "[1]", "{}", "not JSON"])
def test_a_broken_file_is_as_none(both, cache, text):
    cache.mkdir()
    (cache / "vim_scan_speed.json").write_text(text)
    assert ssm.pick("cuda").name == "triton"


def test_it_says_what_it_was_measured_with(cache):
    kept = json.loads(speed.remember({"triton": 1.0}).read_text())
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["milliseconds"] == {"triton": 1.0}
