"""On a GPU a step waits for nothing: counted on tensors without values, which can't be waited for by accident.

PyTorch's meta device computes shapes alone, and refuses whatever depends on values. What the tests count is what Python
asks a tensor there for, and copies of numbers and tensors of the main memory that are not told to go on meanwhile.
"""

import copy
import importlib
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusion
from engine import evaluate, train_one_epoch
from models_mamba import VisionMamba
from training.runtime.distributed import World
from training.step.average import WeightAverage
from training.step.criteria import binary_cross_entropy
from training.step.epoch import Batches, Learner, StepOptions
from training.step.objectives import Classification, Cosub, Distillation
from training.step.sums import BadSteps

DEVICE = torch.device("meta")
WORLD = World(DEVICE, 0, 1)
STEPS = 2
BATCHES = [(torch.randn(2, 3, 4, 6), torch.arange(2)) for _ in range(STEPS)]
ASKED = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero", "numpy", "cpu")


class Memory:
    """A watch on memory that sees nothing: PyTorch's counters are no tensors."""

    def reset(self):
        pass

    def peak_mb(self):
        return 1.0

    training_mb = peak_mb


class Copies(TorchDispatchMode):
    """Counts copies between the main memory and the device that are waited for."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            places = {tensor.device for tensor in (*args, out) if isinstance(tensor, Tensor)}
            told_not_to = kwargs.get("non_blocking", len(args) > 2 and args[2])
            self.counts["copy"] += len(places) > 1 and not told_not_to
        return out


@pytest.fixture
def waited(monkeypatch):
    """How often the device was waited for, by what."""
    counts = Counter()

    def count(name):
        asked = getattr(Tensor, name)

        def call(self, *args):
            if not self.is_meta:
                return asked(self, *args)
            counts[name] += 1
            return asked(torch.ones(self.shape), *args)

        monkeypatch.setattr(Tensor, name, call)

    def count_new(place, name):
        make = getattr(place, name)

        def call(*args, **kwargs):
            before, made = counts["copy"], make(*args, **kwargs)
            counts["copy"] = before + made.is_meta
            return made

        monkeypatch.setattr(place, name, call)

    for name in ASKED:
        count(name)
    for place, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
        count_new(place, name)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    for module, name, like_a_gpu in (
        ("torch.optim.adam", "_device_dtype_check_for_fused", lambda parameter: None),
        ("torch.optim.optimizer", "_get_fused_kernels_supported_devices", lambda: ["meta"]),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, like_a_gpu)
    with Copies(counts):
        yield counts


def small(plan=(0, 0), method=None, **kwargs):
    model = VisionMamba((4, 6), patch_size=2, embed_dim=16, depth=2, num_classes=5, drop_path_rate=0.2, **kwargs)
    fusion.inject(model, plan, method or fusion.Method())
    return model.to(DEVICE)


def average_of(model):
    """An average of a model's weights; timm can't start one on this device."""
    ema = WeightAverage(copy.deepcopy(model).to_empty(device="cpu"), decay=0.9)
    ema.module.to(DEVICE)
    ema.steps = ema.steps.to(DEVICE)
    return ema


def fused_adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def train(model, waited, objective=None, optimizer=fused_adamw, batches=BATCHES, ema=None, mixup=None, **options):
    learner = Learner(model, objective or Classification(nn.CrossEntropyLoss()), optimizer(model), ema)
    waited.clear()  # of what comes before the first step
    options = StepOptions(**{"read_every": STEPS, "bad_steps": BadSteps(allowed=99)} | options)
    train_one_epoch(learner, Batches(batches, mixup), options, WORLD, 0, memory=Memory())
    return +waited


READ_ONCE = {"tolist": 1}
STRATEGIES = {
    "no": {},
    "all": {"tokens": 1},
    "interleaved": {"tokens": 1},
    "lower": {"layer": 1, "tokens": 1},
    "upper": {"layer": 1, "tokens": 1},
    "alternate": {"tokens": 3},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch_reads_its_numbers_once(waited, strategy):
    assert set(STRATEGIES) == set(fusion.STRATEGIES)
    model = small(fusion.plan(strategy, 2, **STRATEGIES[strategy]))
    ema = average_of(model)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5)
    objective = Classification(nn.CrossEntropyLoss())
    assert train(model, waited, objective, ema=ema, mixup=mixup, clip_grad=1.0, accumulate=2) == READ_ONCE


def test_numbers_are_read_once_an_interval(waited):
    assert train(small(), waited, batches=BATCHES * 2, read_every=2) == {"tolist": 2}
    assert train(small(), waited, batches=BATCHES * 2, read_every=3) == {"tolist": 2}


@pytest.mark.parametrize("name", fusion.CHOICES)
def test_every_way_to_fuse(waited, name):
    for choice in fusion.CHOICES[name]:
        needed = {"score": "delta"} if choice == "lowest" else {}
        assert train(small((1, 1), fusion.Method(**{name: choice}, **needed)), waited) == READ_ONCE, choice


@pytest.mark.parametrize("class_token", ["middle", "front", "double", "none"])
def test_every_place_of_the_class_token(waited, class_token):
    assert train(small((1, 1), class_token=class_token), waited) == READ_ONCE


def test_random_orders(waited):
    model = small((1, 1))
    model.set_random_order(class_position=True, tokens=True)
    assert train(model, waited) == READ_ONCE


@pytest.mark.parametrize("setting", ["set_grad_checkpointing", "set_scan_recompute"])
def test_less_memory(waited, setting):
    model = small((1, 1))
    getattr(model, setting)()
    assert train(model, waited) == READ_ONCE


@pytest.mark.parametrize("name", ["binary", "cosub", "soft", "hard"])
def test_every_objective(waited, name):
    def distilled(hard):
        teacher = DistillationTeacher(small()).to(DEVICE)
        objective = Distillation(nn.CrossEntropyLoss(), teacher, hard=hard, alpha=0.5, tau=1.0)
        objective.renormalisation  # noqa: B018, made once, at the first step
        return objective

    make = {
        "binary": lambda: Classification(binary_cross_entropy()),
        "cosub": lambda: Cosub(binary_cross_entropy(soft=True)),
        "soft": lambda: distilled(False),
        "hard": lambda: distilled(True),
    }
    assert train(small(), waited, make[name]()) == READ_ONCE


@pytest.mark.parametrize("opt", ["lamb", "sgd", "adopt", "lion"])
def test_other_optimizers_are_waited_for_once_a_step(waited, opt):
    found = train(small(), waited, optimizer=lambda model: create_optimizer_v2(model, opt, lr=0.1))
    assert found == {"item": STEPS, **READ_ONCE}


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_mixing_by_pair_or_image_copies_its_draws(waited, mode):
    """timm's Mixup sends the shares of the images once a batch."""
    found = train(small(), waited, mixup=Mixup(mixup_alpha=0.8, mode=mode, num_classes=5))
    assert found == {"copy": STEPS, **READ_ONCE}


@pytest.mark.parametrize("plan", [(0, 0), (1, 1)])
def test_an_evaluation_reads_its_sums_once(waited, plan):
    model = small(plan)
    waited.clear()
    evaluate(model, BATCHES, WORLD)
    assert +waited == READ_ONCE


def test_what_waits_is_counted(waited):
    x = torch.ones(2, device=DEVICE)
    float(x[0]), bool(x[0]), x.tolist(), x.nonzero(), torch.tensor([1.0], device=DEVICE), x.copy_(torch.ones(2))
    assert +waited == {"__float__": 1, "__bool__": 1, "tolist": 1, "nonzero": 1, "copy": 2}
