"""Whatever outside input holds, it is read or refused by a ValueError that says why; nothing else happens."""

import argparse
import io
import json
import string

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import datasets
import fusion
from models_mamba import VisionMamba, checkpoint_filter_fn
from training.records.runs import find_runs, read_log
from training.settings.command_line import get_args_parser
from training.settings.flag import groups
from training.settings.over_run import parse_over
from training.settings.settings import Settings
from training.state import checkpoint
from training.state.entries import KINDS, check_entries

FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one folder serves all examples
)


def read_or_refused(read):
    """What read() gives, or None where it refuses and says why; any other exception fails."""
    try:
        return read()
    except ValueError as error:
        refusal = str(error)
    assert refusal.strip()
    return None


def mutations(valid: bytes):
    """Bytes like the valid ones: cut, lengthened, or with some of them replaced."""
    places = st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), max_size=5)

    def change(places, end, tail):
        changed = bytearray(valid)
        for place, value in places:
            changed[place] = value
        return bytes(changed[:end]) + tail

    return st.builds(change, places, st.integers(0, len(valid)) | st.just(len(valid)), st.binary(max_size=8))


# Plans

NUMBERS = st.text(string.digits + " ,-+.eE_x\n\u0663", max_size=20)


@FUZZ
@given(NUMBERS | st.lists(st.integers(-3, 12), max_size=6).map(lambda plan: ",".join(map(str, plan))))
def test_plans(text):
    plan = read_or_refused(lambda: fusion.parse_plan(text, 4))
    if plan is not None:
        assert len(plan) == 4
        assert min(plan) >= 0
        model = VisionMamba(img_size=8, patch_size=2, embed_dim=16, depth=4, num_classes=2)
        if read_or_refused(lambda: fusion.inject(model, plan) or True):
            counts = fusion.token_counts(plan, 17)
            assert counts[-1] >= 1
            assert model.forward_features(torch.zeros(1, 3, 8, 8)).shape[1] == counts[-1]


@FUZZ
@given(
    st.sampled_from([*fusion.STRATEGIES, "alternate", "", "Upper"]),
    st.integers(1, 8),
    st.none() | st.integers(-2, 8),
    st.integers(-2, 5),
    st.none() | st.integers(-2, 40),
    st.sampled_from([*fusion.SCHEDULES, "random"]),
)
def test_strategies(strategy, depth, layer, tokens, total, schedule):
    plan = read_or_refused(lambda: fusion.plan(strategy, depth, layer, tokens, total=total, schedule=schedule))
    if plan is not None:
        assert len(plan) == depth
        assert min(plan) >= 0
        if total is not None:
            assert sum(plan) == total


# Data

IDX = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4)) + bytes(range(24))


@FUZZ
@given(mutations(IDX) | st.binary(max_size=40))
def test_idx_files(tmp_path, content):
    path = tmp_path / "idx"
    path.write_bytes(content)
    array = read_or_refused(lambda: datasets._read_idx(path, 3))
    if array is not None:
        assert array.dtype == np.uint8
        assert array.ndim == 3
        assert array.tobytes() == content[16:]


# Logs and tables of runs

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
LINES = JSON.map(json.dumps) | st.builds(lambda n: json.dumps({"epoch": n}), st.integers()) | st.text(max_size=20)


@FUZZ
@given(st.lists(LINES, max_size=4).map("\n".join) | mutations(b'{"epoch": 0}\n{"epoch": 1, "test_acc1": 3.0}\n'))
def test_logs(tmp_path, content):
    path = tmp_path / "log.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    epochs = read_or_refused(lambda: read_log(path))
    if epochs is not None:
        assert all(isinstance(epoch["epoch"], int) for epoch in epochs)


SETTINGS = b'{"token_counts": [9, 9, 5], "last_epoch": 2, "fusion_strategy": "all", "seed": 0}'
EPOCH = b'{"epoch": 0, "test_acc1": 9.0, "train_seconds": 2.0, "peak_memory_mb": 30.0, "training_memory_mb": 4.0}\n'


@FUZZ
@given(mutations(SETTINGS) | JSON.map(lambda value: json.dumps(value).encode()), mutations(EPOCH))
def test_runs(tmp_path, about, log):
    (tmp_path / "args.json").write_bytes(about)
    (tmp_path / "log.txt").write_bytes(log)
    runs = read_or_refused(lambda: find_runs(tmp_path))
    if runs is not None:
        assert runs[0].complete in (True, False)


RUNS = b'{"runs": [{"name": "a", "settings": ' + SETTINGS + b', "epochs": [' + EPOCH.strip() + b"]}]}"


@FUZZ
@given(
    mutations(RUNS)
    | JSON.map(lambda value: json.dumps({"runs": [{"name": "a", "settings": {}, "epochs": value}]}).encode())
)
def test_files_of_runs(tmp_path, content):
    path = tmp_path / "runs.json"
    path.write_bytes(content)
    runs = read_or_refused(lambda: find_runs(path))
    if runs:
        assert runs[0].complete in (True, False)


# Checkpoints

PARSER = get_args_parser()
TAKEN = [name for group in groups(Settings).values() for name in group]


@FUZZ
@given(st.dictionaries(st.sampled_from(TAKEN), JSON, max_size=3))
def test_settings_of_a_checkpoint(found):
    args = read_or_refused(lambda: parse_over(PARSER, [], found))
    if args is not None:
        assert args.fusion_strategy == str(found.get("fusion_strategy", "no"))


@FUZZ
@given(st.dictionaries(st.sampled_from([*KINDS]), JSON, max_size=3))
def test_entries_of_a_checkpoint(found):
    if read_or_refused(lambda: check_entries(found) or True):
        assert found.get("epoch", 0) >= 0


MODEL = VisionMamba(img_size=8, patch_size=4, embed_dim=16, depth=1, num_classes=2)
WEIGHTS = MODEL.state_dict()
TENSORS = st.sampled_from(
    [torch.zeros(1), torch.zeros(2, 3), torch.zeros(1, 10, 16), torch.zeros(1, 5, 16), torch.zeros(())]
)
KEYS = st.sampled_from([*WEIGHTS, "layers.0.mixer.conv1d_b.weight", "pos_embed"]) | st.text(max_size=12)
GRIDS = st.sampled_from([(2, 2), (3, 3), (1, 9), (0, 0), (-1, 4), (2,), 3, None, "ab", (2.5, 2)])


@FUZZ
@given(
    st.dictionaries(KEYS, TENSORS, max_size=4), st.lists(st.sampled_from([*WEIGHTS]), max_size=3), GRIDS, st.booleans()
)
def test_weights(changed, dropped, grid, with_grid):
    weights = {name: value for name, value in (WEIGHTS | changed).items() if name not in dropped}
    saved = {"model": weights} | ({"grid_size": grid} if with_grid else {})
    fitted = read_or_refused(lambda: checkpoint_filter_fn(saved, MODEL))
    if fitted is not None and read_or_refused(lambda: checkpoint.check_fit(MODEL, fitted, "x") or True):
        MODEL.load_state_dict(fitted)


def checkpoint_bytes():
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(4.0)}, "args": argparse.Namespace(lr=1)}, file)
    return file.getvalue()


@FUZZ
@given(mutations(checkpoint_bytes()) | st.binary(max_size=40))
def test_checkpoint_files(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    state = read_or_refused(lambda: checkpoint.load(str(path)))
    if state is not None:
        assert all(isinstance(value, torch.Tensor) for value in state["model"].values())
