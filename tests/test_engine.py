"""The two loops: what they update, what they measure, and when they stop."""

import math
import time
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from engine import evaluate, mix, train_one_epoch
from training.runtime.distributed import World
from training.runtime.memory import PeakMemory
from training.step.average import WeightAverage
from training.step.epoch import Batches, Learner, StepOptions
from training.step.objectives import Classification
from training.step.sums import BadSteps, EpochSums, steps_between_readings

WORLD = World(torch.device("cpu"), 0, 1)


class Classifier(nn.Module):
    """A linear classifier of 2x2 images that remembers what precision it ran in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 6)

    def forward(self, x):
        logits = self.head(x.flatten(1))
        self.seen = logits.dtype
        return logits


def batches(count=4, size=6):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(size) % 6
    return [(torch.randn(size, 3, 2, 2, generator=generator) + labels.view(-1, 1, 1, 1), labels) for _ in range(count)]


def learner(model, optimizer=None, criterion=None, lr=0.1, **more):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Learner(model, Classification(criterion or nn.CrossEntropyLoss()), optimizer, **more)


def train(model, loader, *, mixup=None, sums=None, after_step=lambda: None, memory=None, world=WORLD, **kwargs):
    """Train for epoch 3; further arguments are those of learner and of StepOptions."""
    options = StepOptions(**{each.name: kwargs.pop(each.name) for each in fields(StepOptions) if each.name in kwargs})
    learns, memory = learner(model, **kwargs), memory or PeakMemory(world.device)
    batches = Batches(loader, mixup)
    return train_one_epoch(learns, batches, options, world, 3, memory=memory, sums=sums, after_step=after_step)


def test_an_epoch_learns_and_measures():
    model, loader = Classifier(), batches(50)
    first, last = train(model, loader), train(model, loader)
    assert last["train_loss"] < first["train_loss"]
    assert first["lr"] == 0.1
    assert first["images_per_second"] == pytest.approx(300 / first["train_seconds"])
    assert first["peak_memory_mb"] > 10
    assert first["train_grad_norm"] > 0


def test_a_stream_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(3, 2, 2), 0)] * 5)

    loader = DataLoader(Stream(), batch_size=2)
    assert train(Classifier(), loader)["images_per_second"] > 0
    assert evaluate(Classifier(), loader, WORLD)["acc5"] >= 0


@pytest.mark.parametrize("overflows", [1, 4])
def test_steps_that_overflow_stay_out_of_the_mean_norm(overflows):
    """A scaler that starts too high skips steps until it has come down."""
    loader = batches(1) * 4
    norm = train(Classifier(), loader, lr=0.0)["train_grad_norm"]
    model = Classifier()
    steps = iter(range(4))
    model.head.weight.register_hook(lambda grad: grad * (float("inf") if next(steps) < overflows else 1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    result = train(model, loader, lr=0.0, scaler=scaler)
    assert result["train_grad_norm"] == pytest.approx(norm if overflows < 4 else 0.0)
    assert scaler.get_scale() == 2.0 / 2**overflows
    assert all(p.isfinite().all() for p in model.parameters())


def test_times_and_memory_are_the_largest_of_all_processes(monkeypatch):
    reduced = []

    def all_reduce(values, world, op="SUM"):
        reduced.append(op)
        return [value * {"SUM": 2, "MAX": 3, "MIN": 1}[op] for value in values]

    monkeypatch.setattr("engine.all_reduce", all_reduce)
    memory = PeakMemory(WORLD.device)
    monkeypatch.setattr(memory, "peak_mb", lambda: 100.0)
    monkeypatch.setattr(memory, "training_mb", lambda: 10.0)
    monkeypatch.setattr("engine.time.perf_counter", iter(range(1000)).__next__)
    result = train(Classifier(), batches(2), memory=memory)
    assert reduced == ["SUM", "MAX"]
    assert (result["peak_memory_mb"], result["training_memory_mb"]) == (300, 30)
    assert result["train_seconds"] % 3 == result["data_seconds"] % 3 == 0
    assert result["images_per_second"] == pytest.approx(2 * 12 / result["train_seconds"])


def test_the_peak_is_forgotten_before_an_epoch():
    events = []

    class Spy(PeakMemory):
        def reset(self):
            events.append("reset")

        def peak_mb(self):
            events.append("peak")
            return 1.0

    memory = Spy(WORLD.device)
    events.clear()
    train(Classifier(), batches(1), memory=memory)
    assert events[0] == "reset"
    assert "peak" in events


def test_loss_is_the_mean_over_images():
    loader = [*batches(1, size=6), *batches(1, size=2)]
    model = Classifier()
    expected = sum(nn.CrossEntropyLoss(reduction="sum")(model(x), y).item() for x, y in loader) / 8
    assert train(model, loader, lr=0.0)["train_loss"] == pytest.approx(expected)


def test_waiting_for_data_is_counted():
    def slow():
        for batch in batches(3):
            time.sleep(0.1)
            yield batch

    result = train(Classifier(), slow())
    assert result["data_seconds"] == pytest.approx(0.3, abs=0.1)
    assert result["train_seconds"] >= result["data_seconds"]


def test_what_is_done_after_a_step_is_neither_training_nor_waiting(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("engine.time.perf_counter", lambda: clock[0])

    def slow():
        for batch in batches(3):
            clock[0] += 1
            yield batch

    def save():
        clock[0] += 100

    sums = EpochSums(steps=1, seconds=10, data_seconds=5)
    result = train(Classifier(), slow(), sums=sums, after_step=save)
    assert (result["data_seconds"], result["train_seconds"]) == (8, 13)


def test_clipping_bounds_the_step_and_not_the_reported_norm():
    free, clipped = Classifier(), Classifier()
    start = [p.detach().clone() for p in free.parameters()]
    norm = train(free, batches(1), lr=1.0)["train_grad_norm"]
    clipped_norm = train(clipped, batches(1), lr=1.0, clip_grad=0.01)["train_grad_norm"]
    assert clipped_norm == pytest.approx(norm)

    def step(model):
        return torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), start, strict=True)]).norm().item()

    assert step(free) == pytest.approx(norm, rel=1e-4)
    assert step(clipped) == pytest.approx(0.01, rel=1e-3)


def test_average_of_the_weights_follows_them():
    model = Classifier()
    ema = WeightAverage(model, decay=0.3)
    weights = []
    train(model, batches(3), ema=ema, after_step=lambda: weights.append(model.head.weight.detach().clone()))
    first, second, third = weights  # the first step starts the average; without a bound the second would keep 0.37
    expected = (first * 0.3 + second * 0.7) * 0.3 + third * 0.7
    torch.testing.assert_close(ema.module.head.weight.data, expected)


def test_the_average_warms_up_as_timms():
    model = Classifier()
    ours, timms = WeightAverage(model, decay=0.99), ModelEmaV3(model, decay=0.99, use_warmup=True)
    for step in range(1, 6):
        with torch.no_grad():
            model.head.weight.mul_(1.1)
        ours.update(model, torch.tensor(True))
        timms.update(model, step=step)
    torch.testing.assert_close(ours.module.state_dict(), timms.module.state_dict())


def test_a_bad_step_does_not_move_the_average():
    ends = []
    for loader in (with_bad_batch(1), [batch for i, batch in enumerate(batches(4)) if i != 1]):
        model = Classifier()
        ema = WeightAverage(model, decay=0.99)
        train(model, loader, ema=ema, bad_steps=BadSteps(allowed=1))
        ends.append((ema.module.state_dict(), ema.steps))
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert ends[0][1] == 3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_mixed_precision_computes_in_what_it_says(dtype):
    model = Classifier()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if dtype == torch.float16 else None
    norm = train(model, batches(1), autocast=dtype, scaler=scaler)["train_grad_norm"]
    assert model.seen == (dtype or torch.float32)
    assert norm == pytest.approx(train(Classifier(), batches(1))["train_grad_norm"], rel=0.02)  # unscaled
    evaluate(model, batches(1), WORLD, autocast=dtype)
    assert model.seen == (dtype or torch.float32)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 99])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate):
    whole, parts = Classifier(), Classifier()
    expected = train(whole, batches(5, size=7))
    found = train(parts, batches(5, size=7), accumulate=accumulate)
    assert found["train_loss"] == pytest.approx(expected["train_loss"])
    assert found["train_grad_norm"] == pytest.approx(expected["train_grad_norm"])
    torch.testing.assert_close(parts.head.weight, whole.head.weight)


def test_parts_go_through_the_model_one_by_one():
    sizes = []
    model = Classifier()
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    train(model, batches(2, size=7), accumulate=3)
    assert sizes == [3, 2, 2] * 2


def test_a_part_that_is_not_finite_loses_the_whole_step():
    model, loader = Classifier(), batches(1)
    loader[0][0][4] = float("nan")
    before = model.head.weight.clone()
    assert train(model, loader, accumulate=3, bad_steps=BadSteps(allowed=1))["skipped_steps"] == 1
    assert torch.equal(model.head.weight, before)


def test_processes_average_gradients_once_a_step(monkeypatch):
    apart = []

    class Wrapped(Classifier):
        @contextmanager
        def no_sync(self):
            apart.append("no_sync")
            yield
            apart.append("end")

        def forward(self, x):
            apart.append("forward")
            return super().forward(x)

    monkeypatch.setattr("engine.all_reduce", lambda values, world, op="SUM": values)
    monkeypatch.setattr("engine.last_process", lambda condition, world: torch.where(condition, 0, -1))
    train(Wrapped(), batches(1), world=WORLD._replace(size=2), accumulate=3)
    assert apart == ["no_sync", "forward", "end", "no_sync", "forward", "end", "forward"]


@pytest.mark.parametrize("train_mode", [True, False])
def test_train_mode(train_mode):
    modes = []
    model = Classifier()
    model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    train(model, batches(1), train_mode=train_mode)
    assert modes == [train_mode]


def test_mixup_makes_soft_targets():
    seen = []

    class Spy(nn.Module):
        def forward(self, logits, targets):
            seen.append(targets)
            return logits.sum() * 0 + 1

    mixup = Mixup(mixup_alpha=1.0, num_classes=6, label_smoothing=0.0)
    train(Classifier(), batches(1), criterion=Spy(), mixup=mixup)
    assert seen[0].shape == (6, 6)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(6))


@pytest.mark.parametrize(("images", "mixed"), [(1, 2), (2, 2), (5, 4)])
def test_a_batch_of_odd_length_can_be_mixed(images, mixed):
    x, targets = mix(Mixup(num_classes=6), torch.randn(images, 3, 2, 2), torch.zeros(images, dtype=torch.long))
    assert len(x) == len(targets) == mixed


def with_bad_batch(place, count=4):
    found = batches(count)
    found[place][0][0] = float("nan")
    return found


def test_a_loss_that_is_not_finite_says_where():
    expected = (
        r"epoch 3, step 2: the loss is nan; the last good step had loss \d.*, gradient norm \d.*, learning rate 0.1"
    )
    with pytest.raises(FloatingPointError, match=expected):
        train(Classifier(), with_bad_batch(2))


def test_a_gradient_that_is_not_finite_says_where():
    model = Classifier()
    model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = model.head.weight.clone()
    with pytest.raises(FloatingPointError, match=r"epoch 3, step 0: the gradient norm is (inf|nan);"):
        train(model, batches(2))
    assert torch.equal(model.head.weight, before)


def test_bad_steps_change_nothing_and_are_counted():
    expected, model = Classifier(), Classifier()
    good = with_bad_batch(1)
    del good[1]
    result, plain = train(model, with_bad_batch(1), bad_steps=BadSteps(allowed=1)), train(expected, good)
    assert torch.equal(model.head.weight, expected.head.weight)
    assert (result["skipped_steps"], plain["skipped_steps"]) == (1, 0)
    assert result["train_loss"] == plain["train_loss"]
    two = with_bad_batch(1)
    two[3] = two[1]
    with pytest.raises(FloatingPointError, match="step 3"):
        train(Classifier(), two, bad_steps=BadSteps(allowed=1))


OPTIMIZERS = {
    "fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.1, fused=True),
    "waiting": lambda model: torch.optim.AdamW(model.parameters(), lr=0.1, fused=False),
    "timm": lambda model: create_optimizer_v2(model, "lamb", lr=0.1, weight_decay=0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("read_every", [1, 2, 50])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_step_leaves_weights_and_the_optimizer_as_they_are(optimizer, read_every, bad):
    ends = []
    for loader in (with_bad_batch(bad), [batch for i, batch in enumerate(batches(4)) if i != bad]):
        model, sums = Classifier(), EpochSums()
        stepping = OPTIMIZERS[optimizer](model)
        settings = {"bad_steps": BadSteps(allowed=1), "read_every": read_every, "sums": sums}
        result = train(model, loader, optimizer=stepping, **settings)
        ends.append((model.state_dict(), stepping.state_dict(), result["train_loss"], result["train_grad_norm"]))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_the_run_stops_within_the_interval_and_says_which_step_it_was():
    steps = []
    with pytest.raises(FloatingPointError, match=r"epoch 3, step 1: the loss is nan; the last good step had loss \d"):
        train(Classifier(), with_bad_batch(1, count=9), read_every=3, after_step=lambda: steps.append(1))
    assert len(steps) == 2
    with pytest.raises(FloatingPointError, match=r"epoch 3, step 3: the loss is nan"):
        train(Classifier(), with_bad_batch(3), read_every=50)


def test_a_checkpoint_between_two_readings_holds_true_sums():
    kept = {}
    for read_every in (1, 3):
        sums = EpochSums()
        kept[read_every] = []

        def note(sums=sums, kept=kept[read_every]):
            state = sums.state_dict()
            kept.append({name: state[name] for name in state if not name.endswith("seconds")})

        train(Classifier(), with_bad_batch(1), sums=sums, read_every=read_every, after_step=note, bad_steps=BadSteps(1))
    assert kept[1] == kept[3]
    assert [state["skipped"] for state in kept[3]] == [0, 1, 1, 1]


def test_no_bad_checkpoint_is_made_between_two_readings():
    sums = EpochSums()
    with pytest.raises(FloatingPointError, match="step 1"):
        train(Classifier(), with_bad_batch(1), sums=sums, read_every=50, after_step=sums.state_dict)


def test_a_gpu_is_read_once_in_a_while_and_a_cpu_at_every_step():
    assert steps_between_readings(torch.device("cpu")) == 1
    assert steps_between_readings(torch.device("cuda", 1)) > 1


def test_a_norm_that_overflows_changes_nothing_under_fp16():
    """Finite gradients, whose squares are too large for fp32: no scale would help."""
    model = Classifier()
    model.head.weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    before, scaler = model.head.weight.clone(), torch.amp.GradScaler("cpu", init_scale=2.0)
    with pytest.raises(FloatingPointError, match="step 0: the gradient norm is inf"):
        train(model, batches(2), scaler=scaler)
    assert torch.equal(model.head.weight, before)


def test_gradients_that_no_scale_makes_finite_are_bad():
    model = Classifier()
    model.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(FloatingPointError, match="step 29: the gradient norm is nan"):
        train(model, batches(1) * 100, scaler=scaler)
    assert scaler.get_scale() > 1e-5


def test_a_bad_loss_does_not_lower_the_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    loader = [batch for batch in with_bad_batch(1) for _ in range(2)]
    result = train(Classifier(), loader, scaler=scaler, bad_steps=BadSteps(skip_losses=True))
    assert result["skipped_steps"] == 2
    assert scaler.get_scale() == 2.0


def test_skipped_losses_do_not_count_as_bad():
    loader = with_bad_batch(1)
    loader[3] = loader[1]
    assert train(Classifier(), loader, bad_steps=BadSteps(skip_losses=True))["skipped_steps"] == 2


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_replaced_losses_count_nothing_and_have_no_gradient(bad):
    model, loader = Classifier(), batches(1)

    def criterion(logits, labels):
        return nn.functional.cross_entropy(logits, labels) + bad

    before = model.head.weight.clone()
    result = train(model, loader, criterion=criterion, bad_steps=BadSteps(replace_losses=True))
    assert result["train_loss"] == 0
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("policy", [BadSteps(replace_losses=True), BadSteps(skip_losses=True, replace_losses=True)])
def test_losses_that_the_network_itself_makes_bad_are_replaced_too(policy):
    """Backwards, 0 times NaN is NaN."""
    model, expected = Classifier(), Classifier()
    good = [batch for i, batch in enumerate(batches(4)) if i != 1]
    result, plain = train(model, with_bad_batch(1), bad_steps=policy), train(expected, good)
    assert torch.equal(model.head.weight, expected.head.weight)
    assert result["skipped_steps"] == 1
    assert result["train_loss"] == pytest.approx(plain["train_loss"] * 3 / 4)


def test_what_is_random_follows_seed_epoch_and_step():
    def draws(seed=0, sums=None):
        found = []
        model = Classifier()
        model.register_forward_pre_hook(lambda *_: found.append(torch.rand(1).item()))
        train(model, batches(4 - (sums.steps if sums else 0)), seed=seed, sums=sums)
        return found

    whole = draws()
    assert len(set(whole)) == 4
    assert draws() == whole
    assert draws(sums=EpochSums(steps=2)) == whole[2:]
    assert set(draws(seed=1)).isdisjoint(whole)


def test_an_epoch_goes_on_with_its_sums():
    whole, model = train(Classifier(), batches(4)), Classifier()
    sums, kept = EpochSums(), []

    def stop():
        kept.append(EpochSums(**sums.state_dict()))
        if sums.steps == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, batches(4), sums=sums, after_step=stop)
    assert [s.steps for s in kept] == [1, 2]
    rest = train(model, batches(4)[2:], sums=sums)
    for name in ("train_loss", "train_grad_norm", "skipped_steps"):
        assert rest[name] == pytest.approx(whole[name], rel=1e-12)
    assert rest["train_seconds"] > kept[-1].seconds > 0


def test_no_batch_is_an_error():
    with pytest.raises(OSError, match="no batch"):
        train(Classifier(), [])
    with pytest.raises(OSError, match="no test image can be read"):
        evaluate(Classifier(), [], WORLD)


def test_evaluation_counts_every_image():
    model = Classifier()
    loader = [*batches(2, size=6), *batches(1, size=5)]
    images, labels = torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])
    logits = model(images)
    scores = evaluate(model, loader, WORLD)
    assert scores["acc1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    top5 = logits.topk(5).indices.eq(labels.unsqueeze(1)).any(1)
    assert scores["acc5"] == pytest.approx(100 * top5.float().mean().item())
    assert scores["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert scores["seconds"] > 0


def test_training_and_evaluation_modes():
    class Modes(Classifier):
        def forward(self, x):
            self.was_training, self.had_gradients = self.training, torch.is_grad_enabled()
            return super().forward(x)

    model = Modes()
    train(model, batches(1))
    assert (model.was_training, model.had_gradients) == (True, True)
    evaluate(model, batches(1), WORLD)
    assert (model.was_training, model.had_gradients) == (False, False)
