"""Loaders: batch sizes, repeats, sharing out, and what a flag of theirs changes."""

import sys

import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

import training.data.loaders as loaders
from training.runtime.distributed import World
from training.runtime.randomness import seed_all
from training.settings.settings import Settings

CPU = torch.device("cpu")


def arguments(**changes):
    return Settings(**({"batch_size": 4, "num_workers": 0, "repeated_aug": False} | changes))


def dataset(count):
    return TensorDataset(torch.arange(count))


def images(loader):
    return [image for batch in batches(loader) for image in batch]


def batches(loader):
    return [batch[0].tolist() for batch in loader]


def test_training_batches_are_full_and_shuffled():
    found = batches(loaders.train_loader(dataset(10), arguments(), World(CPU, 0, 1)))
    assert [len(batch) for batch in found] == [4, 4]
    assert sorted(found[0] + found[1]) != found[0] + found[1]
    other_seed = batches(loaders.train_loader(dataset(10), arguments(seed=1), World(CPU, 0, 1)))
    assert other_seed != found


def test_less_than_one_batch_is_one_short_batch():
    assert [len(b) for b in batches(loaders.train_loader(dataset(3), arguments(), World(CPU, 0, 1)))] == [3]
    assert [len(b) for b in batches(loaders.train_loader(dataset(3), arguments(), World(CPU, 1, 2)))] == [1]


def test_repeated_augmentation_draws_a_third_of_the_images_three_times():
    found = images(loaders.train_loader(dataset(12), arguments(repeated_aug=True), World(CPU, 0, 1)))
    assert len(found) == 12
    assert {found.count(image) for image in found} == {3}


@pytest.mark.parametrize("shared_out", [False, True])
def test_test_images_come_once(shared_out):
    parts = [
        images(loaders.test_loader(dataset(11), arguments(dist_eval=shared_out), World(CPU, rank, 3)))
        for rank in range(3)
    ]
    if shared_out:
        assert sorted(image for part in parts for image in part) == list(range(11))
    else:
        assert parts == [list(range(11))] * 3


def test_test_batches_are_larger():
    assert [len(b) for b in batches(loaders.test_loader(dataset(11), arguments(), World(CPU, 0, 1)))] == [6, 5]


def test_streams_share_themselves_out():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(10))

    assert [len(b) for b in loaders.train_loader(Stream(), arguments(), World(CPU, 1, 2))] == [4, 4]
    assert [len(b) for b in loaders.test_loader(Stream(), arguments(), World(CPU, 1, 2))] == [6, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_draw_anew_in_every_epoch_and_process(workers):
    class Stream(IterableDataset):
        def __iter__(self):
            return (torch.rand(1) for _ in range(4))

        def set_epoch(self, epoch):
            pass

    def draws(epoch, rank, seed=0):
        args, world = arguments(num_workers=workers, seed=seed), World(CPU, rank, 2)
        loader = loaders.train_loader(Stream(), args, world)
        seed_all(0)  # as evaluation leaves it
        assert loaders.start_epoch(loader, epoch, 3, args.seed, rank) == 0
        return tuple(torch.cat(list(loader)).flatten().tolist())

    assert len({draws(epoch, rank, seed) for epoch in (0, 1) for rank in (0, 1) for seed in (0, 1)}) == 8
    assert draws(1, 1) == draws(1, 1)


def test_a_stream_is_told_how_many_processes_load_it(monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(8))

        def set_loader_cfg(self, num_workers):
            self.told = num_workers

    monkeypatch.setattr(loaders, "usable_workers", lambda wanted: wanted)
    for load in (loaders.train_loader, loaders.test_loader):
        for workers in (0, 3):
            stream = Stream()
            load(stream, arguments(num_workers=workers), World(CPU, 0, 1))
            assert stream.told == workers


@pytest.mark.parametrize(("count", "size"), [(10, 4), (4, 4), (3, 3)])
def test_how_many_images_a_batch_has(count, size):
    loader = loaders.train_loader(dataset(count), arguments(), World(CPU, 0, 1))
    assert loaders.images_per_batch(loader) == size == len(batches(loader)[0])


def test_a_step_of_several_batches_is_loaded_at_once():
    args = arguments(grad_accum_steps=2)
    assert [len(b) for b in batches(loaders.train_loader(dataset(17), args, World(CPU, 0, 1)))] == [8, 8]
    assert loaders.steps_per_epoch(loaders.train_loader(dataset(17), args, World(CPU, 0, 1)), args) == 2


def test_a_stream_does_not_say_how_long_an_epoch_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    args = arguments(data_set="wds/x")
    stream = loaders.train_loader(Stream(), args, World(CPU, 0, 1))
    with pytest.raises(ValueError, match="--sched-on-updates: --data-set wds/x is a stream"):
        loaders.steps_per_epoch(stream, args)


@pytest.mark.parametrize(
    ("pin_mem", "device", "pinned"), [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False)]
)
def test_memory_is_pinned_for_a_gpu(pin_mem, device, pinned):
    loader = loaders.train_loader(dataset(8), arguments(pin_mem=pin_mem), World(torch.device(device), 0, 1))
    assert loader.pin_memory == pinned


def test_workers_are_at_most_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert [loaders.usable_workers(n) for n in (0, 2, 3, 25)] == [0, 2, 3, 3]
    loader = loaders.train_loader(dataset(8), arguments(num_workers=25), World(CPU, 0, 1))
    assert loader.num_workers == 3


@pytest.mark.parametrize(("processes", "workers"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, processes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loaders.usable_workers(25) == workers
    assert loaders.usable_workers(0) == 0


def test_who_has_which_test_images():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    assert [loaders.shared_out(dataset(3), arguments(dist_eval=asked)) for asked in (False, True)] == [False, True]
    assert loaders.shared_out(Stream(), arguments())


def test_a_loading_process_whose_reader_is_gone_says_nothing(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *details: printed.append(kind))
    loaders.say_nothing_to_nobody()
    for kind in (BrokenPipeError, ConnectionResetError, EOFError, ValueError):
        sys.excepthook(kind, kind(), None)
    assert printed == [ValueError]


@pytest.mark.parametrize("build", [loaders.train_loader, loaders.test_loader])
def test_loading_processes_are_told(build):
    assert build(dataset(8), arguments(), World(CPU, 0, 1)).worker_init_fn is loaders.say_nothing_to_nobody
