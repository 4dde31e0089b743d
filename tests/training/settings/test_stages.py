"""Epochs are shared out over the image sizes of --train-img-sizes."""

import pytest

from training.settings.settings import Settings
from training.settings.stages import first_epoch, stage_of, train_sizes


def settings(epochs, *sizes):
    return Settings(epochs=epochs, train_img_sizes=sizes or None, input_size=(8, 10))


@pytest.mark.parametrize(
    ("epochs", "sizes", "stages"),
    [
        (6, (4, 6, 8), [0, 0, 1, 1, 2, 2]),
        (3, (4, 6, 8), [0, 1, 2]),
        (5, (4, 8), [0, 0, 0, 1, 1]),
        (4, (4, 6, 8), [0, 0, 1, 2]),
        (3, (4,), [0, 0, 0]),
        (3, (), [0, 0, 0]),
    ],
)
def test_stages_are_equally_long_but_for_one_epoch(epochs, sizes, stages):
    chosen = settings(epochs, *sizes)
    assert [stage_of(epoch, chosen) for epoch in range(epochs)] == stages
    assert [first_epoch(stage, chosen) for stage in range(len(sizes))] == [stages.index(i) for i in range(len(sizes))]


def test_a_cooldown_belongs_to_the_last_stage():
    assert stage_of(9, settings(6, 4, 6, 8)) == 2


def test_sizes_are_square_and_by_default_the_input_size():
    assert train_sizes(settings(6, 4, 6, 8)) == [(4, 4), (6, 6), (8, 8)]
    assert train_sizes(settings(6)) == [(8, 10)]
