"""Two real processes, started once for all tests here: what one of them meets, both act on."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import main
import runner
from engine import train_one_epoch
from tests.fashion import write_fashion
from tests.forked import together
from training.runtime.distributed import init_world
from training.runtime.memory import PeakMemory
from training.step.epoch import Batches, Learner, StepOptions
from training.step.objectives import Classification
from training.step.sums import BadSteps

BAD_RANK = 1
QUICK = "--no-aug --mixup 0 --cutmix 0 --no-repeated-aug --no-model-ema --drop-path 0 --num_workers 0 --batch-size 8"


def batches(rank, bad=()):
    """Three batches of 4 images; of the bad ones' third image, on one of the processes, a pixel is NaN."""
    generator = torch.Generator().manual_seed(rank)
    found = [(torch.randn(4, 3, 2, 2, generator=generator), torch.arange(4)) for _ in range(3)]
    for step in bad if rank == BAD_RANK else ():
        found[step][0][2, 0, 0, 0] = float("nan")
    return found


def train(world, loader, **options):
    """Final weights, the epoch's record, and what it ended with."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    learner, options = Learner(model, Classification(nn.CrossEntropyLoss()), optimizer), StepOptions(**options)
    memory, record, error = PeakMemory(world.device), {}, ""
    try:
        record = train_one_epoch(learner, Batches(loader), options, world, 0, memory=memory)
    except FloatingPointError as raised:
        error = str(raised)
    return {"weights": model.state_dict(), "record": record, "error": error}


def train_by_plateau(world, folder):
    """A run in which only the main process's accuracy rises: the learning rate and weights at its end."""
    states, accuracy = [], iter(range(10))
    finish_epoch = runner.TrainingState.finish_epoch

    def spy(state, acc1):
        finish_epoch(state, acc1)
        states.append(state)

    def evaluate(*args, **kwargs):
        return {"loss": 1.0, "acc1": float(next(accuracy) if world.is_main else 50), "acc5": 1.0, "seconds": 0.1}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "init_world", lambda device: world)
        patch.setattr(runner.TrainingState, "finish_epoch", spy)
        patch.setattr(runner, "evaluate", evaluate)
        plateau = "--sched plateau --patience-epochs 0 --warmup-epochs 0 --epochs 4"
        data = ["--data-set", "FMNIST", "--data-path", str(folder), "--output_dir", str(folder / "run")]
        main.main([*f"{QUICK} {plateau}".split(), *data])
    state = states[-1]
    return {"lr": state.optimizer.param_groups[0]["lr"], "weights": state.model.state_dict()}


def scenarios(world, folder):
    """What every scenario gave on this process."""
    allowed = BadSteps(allowed=1)
    return {
        "good": train(world, batches(world.rank)[:1] + batches(world.rank)[2:]),
        "stopped": train(world, batches(world.rank, bad=(1,))),
        "allowed": train(world, batches(world.rank, bad=(1,)), bad_steps=allowed),
        "in parts": train(world, batches(world.rank, bad=(1,)), bad_steps=allowed, accumulate=4),
        "good in parts": train(world, batches(world.rank)[:1] + batches(world.rank)[2:], accumulate=4),
        "read late": train(world, batches(world.rank, bad=(1,)), bad_steps=allowed, read_every=50),
        "skipped": train(world, batches(world.rank, bad=(1,)), bad_steps=BadSteps(skip_losses=True)),
        "replaced": train(world, batches(world.rank, bad=(1,)), bad_steps=BadSteps(replace_losses=True)),
        "plateau": train_by_plateau(world, folder),
    }


def save_scenarios(folder):
    world = init_world("cpu")
    torch.save(scenarios(world, Path(folder)), Path(folder) / f"{world.rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each scenario gave, on both processes."""
    folder = write_fashion(tmp_path_factory.mktemp("two"), train=32, test=8, side=8)
    together(2, [str(folder)], save_scenarios)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return {name: (first[name], second[name]) for name in first}


def assert_equal_weights(*results):
    for result in results[1:]:
        torch.testing.assert_close(result["weights"], results[0]["weights"], rtol=0, atol=0)


def test_who_had_the_bad_loss_is_said(found):
    errors = [result["error"] for result in found["stopped"]]
    assert errors[0].startswith("epoch 0, step 1: the loss of process 1 is not finite; the last good step had loss ")
    assert errors[1].startswith("epoch 0, step 1: the loss is nan; the last good step had loss ")
    assert_equal_weights(*found["stopped"])


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("allowed", "good"),
        ("in parts", "good in parts"),
        ("read late", "good"),
        ("skipped", "good"),
        ("replaced", "good"),
    ],
)
def test_a_bad_batch_of_one_process_is_lost_to_both(found, bad, good):
    assert_equal_weights(*found[bad], *found[good])
    assert [result["record"]["skipped_steps"] for result in found[bad]] == [1, 1]
    if bad != "replaced":  # there the loss that is not finite counts as 0, and the other process's as it is
        for result, expected in zip(found[bad], found[good], strict=True):
            assert result["record"]["train_loss"] == expected["record"]["train_loss"]


def test_the_main_process_decides_when_accuracy_stands_still(found):
    first, second = found["plateau"]
    assert first["lr"] == second["lr"]
    assert_equal_weights(first, second)
