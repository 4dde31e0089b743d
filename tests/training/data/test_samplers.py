"""Samplers: what holds for any number of images, processes, seeds and epochs."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from training.data.samplers import EvalSampler, TrainSampler, drop_last
from training.runtime.randomness import SeededImages, seed_all

sizes = st.integers(1, 200)
worlds = st.integers(1, 9)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 50)
repeats = st.integers(1, 5)


def shards(num_samples, world_size, seed=0, epoch=0, **options):
    samplers = [TrainSampler(num_samples, world_size, rank, seed, **options) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    indices = [[draw.index for draw in sampler] for sampler in samplers]
    assert [len(shard) for shard in indices] == [len(sampler) for sampler in samplers]
    return indices


def global_order(num_samples, **options):
    return shards(num_samples, 1, **options)[0]


@given(sizes, worlds, seeds, epochs)
def test_shards_are_disjoint_equal_and_cover(num_samples, world_size, seed, epoch):
    indices = shards(num_samples, world_size, seed, epoch)
    assert len({len(shard) for shard in indices}) == 1
    seen = [index for shard in indices for index in shard]
    assert set(seen) <= set(range(num_samples))
    if num_samples >= world_size:
        assert len(seen) == len(set(seen))
        assert num_samples - len(seen) < world_size
    else:
        assert len(seen) == world_size
        assert set(seen) == set(range(num_samples))


@given(st.integers(20, 200), worlds, seeds, epochs, repeats, st.integers(1, 8))
def test_global_batches_do_not_depend_on_the_world(num_samples, world_size, seed, epoch, repeats, batch_size):
    indices = shards(num_samples, world_size, seed, epoch, repeats=repeats)
    order = global_order(num_samples, seed=seed, epoch=epoch, repeats=repeats)
    for step in range(len(indices[0]) // batch_size):
        together = [i for shard in indices for i in shard[step * batch_size : (step + 1) * batch_size]]
        global_batch = batch_size * world_size
        assert sorted(together) == sorted(order[step * global_batch : (step + 1) * global_batch])


@given(st.integers(20, 200), seeds, epochs, st.integers(1, 3))
def test_seed_and_epoch_decide_the_order(num_samples, seed, epoch, repeats):
    order = global_order(num_samples, seed=seed, epoch=epoch, repeats=repeats)
    assert order == global_order(num_samples, seed=seed, epoch=epoch, repeats=repeats)
    assert order != global_order(num_samples, seed=seed + 1, epoch=epoch, repeats=repeats)
    assert order != global_order(num_samples, seed=seed, epoch=epoch + 1, repeats=repeats)


def test_neighbouring_seeds_do_not_share_epochs():
    assert global_order(100, seed=0, epoch=1) != global_order(100, seed=1, epoch=0)


def test_seeds_differ_under_repeats_in_every_epoch():
    orders = {tuple(global_order(30, seed=3, epoch=epoch, repeats=3)) for epoch in range(12)}
    assert len(orders) == 12


@given(sizes, epochs, st.integers(0, 3))
def test_no_shuffle_keeps_the_order(num_samples, epoch, seed):
    assert global_order(num_samples, seed=seed, epoch=epoch, shuffle=False) == list(range(num_samples))


@given(sizes, seeds, repeats, st.integers(0, 20))
def test_repeats_draw_few_images_often_and_all_in_turn(num_samples, seed, repeats, cycle):
    drawn = Counter()
    per_epoch = -(-num_samples // repeats)
    for part in range(repeats):
        order = global_order(num_samples, seed=seed, epoch=cycle * repeats + part, repeats=repeats)
        counts = Counter(order)
        assert len(order) == per_epoch * repeats
        assert set(counts.values()) == {repeats}
        assert all(len(set(order[i : i + repeats])) == 1 for i in range(0, len(order), repeats))
        drawn.update(counts.keys())
    assert set(drawn) == set(range(num_samples))
    surplus = per_epoch * repeats - num_samples  # the last parts start again
    assert sum(drawn.values()) == num_samples + surplus


@given(st.integers(30, 200), seeds, epochs, st.integers(2, 4), st.integers(0, 5))
def test_copies_go_to_different_processes(num_samples, seed, epoch, repeats, extra):
    for shard in shards(num_samples, repeats + extra, seed, epoch, repeats=repeats):
        assert len(shard) == len(set(shard))


@pytest.mark.parametrize("repeats", [1, 3])
def test_new_order_after_every_image_was_shown(repeats):
    first = [global_order(30, epoch=epoch, repeats=repeats) for epoch in range(repeats)]
    second = [global_order(30, epoch=repeats + epoch, repeats=repeats) for epoch in range(repeats)]
    assert first != second


@given(st.integers(0, 200), worlds)
def test_evaluation_shows_every_image_once(num_samples, world_size):
    samplers = [EvalSampler(num_samples, world_size, rank) for rank in range(world_size)]
    indices = [list(sampler) for sampler in samplers]
    assert [len(shard) for shard in indices] == [len(sampler) for sampler in samplers]
    assert max(map(len, indices)) - min(map(len, indices)) <= 1
    assert all(shard == sorted(shard) for shard in indices)
    assert sorted(index for shard in indices for index in shard) == list(range(num_samples))


@pytest.mark.parametrize(("num_samples", "batches"), [(1, [1]), (3, [3]), (4, [4]), (7, [4]), (8, [4, 4])])
def test_a_short_batch_is_dropped_unless_it_is_the_only_one(num_samples, batches):
    sampler = TrainSampler(num_samples, 1, 0, seed=0)
    loader = DataLoader(SeededImages(range(num_samples)), 4, sampler=sampler, drop_last=drop_last(sampler, 4))
    assert [len(batch) for batch in loader] == batches


@pytest.mark.parametrize(
    "wrong", [{"num_samples": 0}, {"repeats": 0}, {"rank": 2}, {"rank": -1}, {"world_size": 0, "rank": 0}]
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=r"must be|is not one"):
        TrainSampler(**{"num_samples": 5, "world_size": 2, "rank": 0, "seed": 0, **wrong})


def test_wrong_rank_in_evaluation():
    with pytest.raises(ValueError, match="is not one"):
        EvalSampler(5, 2, 2)


@given(sizes, worlds, seeds, epochs, repeats, st.data())
def test_draws_go_on_from_any_place_with_keys_of_their_own(num_samples, world_size, seed, epoch, repeats, data):
    samplers = [TrainSampler(num_samples, world_size, rank, seed, repeats=repeats) for rank in range(world_size)]
    whole = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        whole.append(list(sampler))
        start = data.draw(st.integers(0, len(sampler)))
        sampler.set_epoch(epoch, start=start)
        assert list(sampler) == whole[-1][start:]
    keys = [draw.key for draws in whole for draw in draws]
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys} <= {(seed, epoch)}


@given(sizes, worlds, seeds, epochs, repeats)
def test_a_draws_key_does_not_depend_on_the_world(num_samples, world_size, seed, epoch, repeats):
    alone = TrainSampler(num_samples, 1, 0, seed, repeats=repeats)
    alone.set_epoch(epoch)
    expected = {draw.key: draw.index for draw in alone}
    for rank in range(world_size):
        sampler = TrainSampler(num_samples, world_size, rank, seed, repeats=repeats)
        sampler.set_epoch(epoch)
        for draw in sampler:
            assert expected.get(draw.key, draw.index) == draw.index


def test_a_step_draws_other_numbers_than_the_image_at_its_place():
    """A step's key is that of the image with the rank behind it, which is 0 on the main process."""
    found = set()
    for key in ((3, 1, 4), (3, 1, 4, 0), (3, 1, 4, 0, 0)):
        seed_all(*key)
        found.add((random.random(), np.random.rand(), torch.rand(1).item()))
    assert len({draw[0] for draw in found}) == len({draw[1] for draw in found}) == len({draw[2] for draw in found}) == 3
