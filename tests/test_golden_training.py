"""A change that should not alter results gives the losses that lie in tests/golden, on any machine."""

import json

import pytest

from tests.golden_training import FILE, RUNS, STEPS, losses

GOLDEN = json.loads(FILE.read_text())


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "auto") for name in RUNS), ("fp32", "reference"), ("upper", "reference")]
)
def test_losses_are_the_golden_ones(name, backend):
    """In fp64 within 1e-8, which also tells another epsilon of the optimizer."""
    assert losses(name, backend) == pytest.approx(GOLDEN[name], rel=1e-5 if name == "fp32" else 1e-8)


def test_the_golden_losses_tell_every_run_from_the_others():
    """Without fusion, fp32 differs by its weights: one seed draws others in fp64."""
    assert {name: len(found) for name, found in GOLDEN.items()} == dict.fromkeys(RUNS, STEPS)
    for name in RUNS:
        others = [other for other in RUNS if other != name]
        assert all(GOLDEN[name] != pytest.approx(GOLDEN[other], rel=1e-3) for other in others)
