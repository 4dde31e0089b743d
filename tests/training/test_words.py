"""Numbers and errors in sentences."""

import pytest

from training.words import clock, counted, reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((0, "GPU"), "0 GPUs"),
        ((1, "GPU"), "1 GPU"),
        ((2, "GPU"), "2 GPUs"),
        ((1, "class", "classes"), "1 class"),
        ((1000, "class", "classes"), "1,000 classes"),
    ],
)
def test_one_and_several(words, said):
    assert counted(*words) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00:00"), (3661, "1:01:01"), (2 * 86400 + 60, "2 days, 0:01:00")]
)
def test_a_span_of_time(seconds, said):
    assert clock(seconds) == said


def test_an_error_on_one_line():
    assert reason(ValueError("so\n  many words")) == "so many words"
    assert reason(KeyError()) == "KeyError"
