"""The mixer: its directions and how it starts. Its values are checked by the golden models."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch

import models_mamba
import ssm
from ssm import BiMamba

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "vim_state_dict_keys.json").read_text())


def test_output_is_the_mean_of_both_directions():
    mixer = BiMamba(8)
    hidden = torch.randn(2, 5, 8)
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    expected = mixer.out_proj((mixer.forward_ssm(x, z) + mixer.backward_ssm(x, z)) / 2)
    torch.testing.assert_close(mixer(hidden), expected)


@pytest.mark.parametrize(("bidirectional", "sees_ahead"), [(True, True), (False, False)])
def test_only_the_bidirectional_mixer_sees_ahead(bidirectional, sees_ahead):
    mixer = BiMamba(8, bidirectional=bidirectional)
    hidden = torch.randn(1, 6, 8)
    changed = hidden.clone()
    changed[:, 5] += 1
    difference = (mixer(changed) - mixer(hidden))[:, :5].abs().max()
    assert (difference > 0) == sees_ahead


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("way", ["reference", "cpu", "recompute", "hooked"])
def test_hands_out_what_it_computes_on_its_way(bidirectional, way):
    """By hand, whichever way the mixer computes; without gradients, and with the same output as without."""
    backend = "reference" if way == "reference" else "cpu"
    if ssm.unavailable(backend):
        pytest.skip(ssm.unavailable(backend))
    mixer, hidden = BiMamba(8, bidirectional=bidirectional), torch.randn(2, 5, 8)
    directions = [mixer.forward_ssm, mixer.backward_ssm][: 1 + bidirectional]
    torch.nn.init.normal_(directions[-1].dt_proj.bias)
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    expected = {"delta": [], "B": [], "C": []}
    for one in directions:
        u = ssm.causal_conv1d(x, one.conv1d.weight.squeeze(1), one.conv1d.bias, reverse=one.reverse)
        dt, B, C = one.x_proj(u).split((one.dt_rank, 16, 16), dim=-1)
        for name, part in (("delta", torch.nn.functional.softplus(one.dt_proj(dt))), ("B", B), ("C", C)):
            expected[name].append(part)
    expected = {name: torch.cat(parts, dim=-1) for name, parts in expected.items()}
    expected["scan"] = sum(one(x, z) for one in directions)

    mixer.recompute = way == "recompute"
    if way == "hooked":
        directions[0].x_proj.register_forward_hook(lambda *args: None)
    with ssm.use_backend(backend):
        out, parts = mixer(hidden, tuple(expected))
        plain = mixer(hidden)
    torch.testing.assert_close(parts, expected)
    assert not any(part.requires_grad for part in parts.values())
    assert torch.equal(out, plain)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), mixer.in_proj.weight), torch.autograd.grad(plain.sum(), mixer.in_proj.weight)
    )


def test_starts_like_the_published_models():
    """Every parameter's first distribution, against statistics of a published tiny model before training."""
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny_patch16_224")
    expected = KEYS["_init_stats_tiny_layer0_seed0"]
    ours = dict(model.named_parameters())
    published = models_mamba.checkpoint_filter_fn({name: name for name in expected if name != "pos_embed"}, model)
    for our_name, name in (published | {"pos_embed": "pos_embed"}).items():
        parameter, stats = ours[our_name], expected[name]
        assert list(parameter.shape) == stats["shape"], name
        spread = stats["std"] / math.sqrt(parameter.numel())
        assert parameter.mean().item() == pytest.approx(stats["mean"], abs=10 * spread + 1e-6), name
        assert parameter.std(correction=0).item() == pytest.approx(stats["std"], rel=0.15, abs=1e-6), name
        reach = stats["max"] - stats["min"]
        assert parameter.max().item() == pytest.approx(stats["max"], abs=0.15 * reach + 1e-6), name
        assert parameter.min().item() == pytest.approx(stats["min"], abs=0.15 * reach + 1e-6), name


def test_scan_and_residual_stay_fp32_under_autocast(monkeypatch):
    seen = {}

    def spy(u, delta, A, *rest, reverse):
        seen["A"] = A.dtype
        return u

    monkeypatch.setattr("ssm.mixer.selective_scan", spy)
    model = models_mamba.VisionMamba(img_size=16, patch_size=8, depth=2, embed_dim=16, num_classes=3)
    with ssm.use_backend("reference"), torch.autocast("cpu", torch.bfloat16):
        tokens = model._embed(torch.randn(1, 3, 16, 16))
        for block in model.layers:
            tokens = block(tokens)
    assert seen["A"] == torch.float32
    assert tokens.residual.dtype == torch.float32
    assert tokens.hidden.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("backend", "autocast", "share"),
    [("reference", False, 0.5), ("reference", True, 0.5), ("cpu", False, 0.8), ("cpu", True, 0.9)],
)
def test_recomputing_gives_the_same_gradients_and_keeps_less(backend, autocast, share):
    if ssm.unavailable(backend):
        pytest.skip(ssm.unavailable(backend))
    model = models_mamba.VisionMamba(img_size=16, patch_size=4, depth=2, embed_dim=32, num_classes=3)
    images = torch.randn(4, 3, 16, 16)

    def run(recompute):
        model.set_scan_recompute(recompute)
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with ssm.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(images).float().square().sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
        return gradients, sum(kept.values())

    (plain, kept), (recomputed, kept_less) = run(False), run(True)
    assert kept_less < share * kept
    tolerance = {"rtol": 0.05, "atol": 0.01} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(recomputed, plain, **tolerance)
