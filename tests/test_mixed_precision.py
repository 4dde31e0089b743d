"""Autocast lowers matrix products and nothing that sums over tokens or layers."""

import pytest
import torch
from torch import nn

import fusion
from engine import train_one_epoch
from models_mamba import VisionMamba
from training.runtime.distributed import World
from training.runtime.memory import PeakMemory
from training.step.epoch import Batches, Learner, StepOptions
from training.step.objectives import Classification

CPU = World(torch.device("cpu"), 0, 1)


def small_model(depth=2):
    torch.manual_seed(0)
    return VisionMamba(img_size=16, patch_size=4, embed_dim=32, depth=depth, num_classes=5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residual_and_norms_stay_fp32(dtype):
    model = small_model()
    fusion.inject(model, (2, 2))
    seen = {"norm": [], "residual": [], "product": []}
    for block in model.layers:
        block.norm.register_forward_hook(lambda module, args, out: seen["norm"].append((args[0].dtype, out.dtype)))
        block.register_forward_hook(lambda module, args, out: seen["residual"].append(out.residual.dtype))
        block.mixer.in_proj.register_forward_hook(lambda module, args, out: seen["product"].append(out.dtype))
    model.norm_f.register_forward_hook(lambda module, args, out: seen["norm"].append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=dtype):
        model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert seen["norm"] == [(torch.float32, torch.float32)] * 3
    assert seen["residual"] == [torch.float32] * 2
    assert seen["product"] == [dtype] * 2
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def last_losses(autocast):
    """Mean of the last 5 of 30 training losses on images whose class is a pattern under noise."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(5, 3, 16, 16, generator=generator)
    losses = []

    class Loss(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            loss = super().forward(logits.float(), labels)
            losses.append(loss.item())
            return loss

    labels = torch.randint(5, (30, 8), generator=generator)
    batches = [(patterns[y] + 2 * torch.randn(8, 3, 16, 16, generator=generator), y) for y in labels]
    learner, options = Learner(model, Classification(Loss()), optimizer), StepOptions(autocast=autocast)
    train_one_epoch(learner, Batches(batches), options, CPU, 0, memory=PeakMemory(CPU.device))
    return sum(losses[-5:]) / 5, losses[0]


def test_bf16_trains_like_fp32():
    whole, first = last_losses(None)
    lowered, _ = last_losses(torch.bfloat16)
    assert whole < 0.7 * first
    assert lowered == pytest.approx(whole, rel=0.02)
    assert lowered != whole
