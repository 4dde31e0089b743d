"""Vision Mamba and fusion together: planned lengths, tracked class tokens, full maps, unchanged checkpoints."""

import pytest
import torch

import fusion
import models_mamba
import ssm
from models_mamba import CLASS_TOKENS, VisionMamba

DEPTH = 6
STRATEGIES = {  # the layers after which 17 tokens shrink, by 2 each
    "no": (None, []),
    "all": (None, [0, 1, 2, 3, 4, 5]),
    "interleaved": (None, [1, 3, 5]),
    "alternate": (None, [1, 3, 5]),
    "lower": (4, [0, 1, 2, 3]),
    "upper": (4, [4, 5]),
}


def build(strategy="no", class_token="middle"):
    torch.manual_seed(0)
    model = VisionMamba(img_size=16, patch_size=4, depth=DEPTH, embed_dim=16, num_classes=5, class_token=class_token)
    layer, _ = STRATEGIES[strategy]
    fusion.inject(model, fusion.plan(strategy, DEPTH, layer, 2 if strategy != "no" else 0))
    return model


def images(batch=3):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def lengths(model):
    found = []
    hooks = [
        block.register_forward_hook(lambda *args: found.append(args[-1].hidden.shape[1])) for block in model.layers
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exactly_the_planned_layers_shrink_the_sequence(strategy):
    model = build(strategy)
    before, found = 17, lengths(model)
    shrunk = []
    for layer, after in enumerate(found):
        if after != before:
            assert before - after == 2
            shrunk.append(layer)
        before = after
    assert shrunk == STRATEGIES[strategy][1]


@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_class_tokens_are_read_where_they_are(class_token):
    """Fusing after the last layer leaves every class token as it was, wherever the survivors put it."""
    plain, fused = build(class_token=class_token), build(class_token=class_token)
    fusion.inject(fused, (0,) * (DEPTH - 1) + (5,))
    K = plain.num_prefix_tokens
    torch.testing.assert_close(fused.forward_features(images())[:, :K], plain.forward_features(images())[:, :K])
    assert fused.forward_features(images()).shape[1] == plain.forward_features(images()).shape[1] - 5
    if K:
        torch.testing.assert_close(fused(images()), plain(images()))


def test_images_fuse_independently():
    model = build("all").eval()
    together = model(images())
    for i, image in enumerate(images()):
        torch.testing.assert_close(model(image[None])[0], together[i])


def test_intermediates_cover_the_full_grid():
    """Every patch shows the token that holds it: patches of one group are equal, and there are as many as tokens."""
    model = build("all").eval()
    maps = model.forward_intermediates(images(), intermediates_only=True)
    for layer, features in enumerate(maps):
        assert features.shape == (3, 16, 4, 4)
        for image in features.flatten(2):
            assert len(image.T.unique(dim=0)) == 16 - 2 * (layer + 1)


def test_checkpoints_load_with_or_without_fusion():
    plain, fused = build(), build("upper")
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    changed = fused(images())
    assert not torch.allclose(changed, plain(images()))
    fusion.inject(fused, (0,) * DEPTH)
    torch.testing.assert_close(fused(images()), plain(images()))


def test_every_parameter_and_every_pixel_gets_a_gradient():
    model, pixels = build("all"), images().requires_grad_()
    model(pixels).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert (pixels.grad.abs().sum(dim=1) > 0).all()


def test_gradient_checkpointing_with_fusion():
    gradients = []
    for enabled in (False, True):
        model = build("all")
        model.set_grad_checkpointing(enabled)
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_fused_tokens_stay_fp32_in_the_residual_under_autocast():
    model = build("all")
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model._embed(images())
        for block in model.layers:
            tokens = block(tokens)
    assert tokens.residual.dtype == torch.float32
    assert tokens.size.sum(1).tolist() == [17.0] * 3


def test_a_plan_is_never_clipped_by_smaller_images():
    model = build("all")
    fusion.inject(model, (4, 3, 2, 1, 1, 1))  # 16 12 9 7 6 5 4
    model.set_input_size(8)
    with pytest.raises(ValueError, match="this layer has 4 patch tokens and can fuse at most 2, not 4"):
        model(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="layer 0 has 4 patch tokens and can fuse at most 2, not 4"):
        fusion.flops(model)
    fusion.inject(model, (2, 1, 0, 0, 0, 0))
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    assert fusion.flops(model) > 0


def last_class_tokens(model, trace):
    """The features of the class tokens before the last fusion, [B, K, D]."""
    tokens = trace.before[-1]
    features = model.norm_f(tokens.residual + tokens.hidden)
    return features.gather(1, tokens.cls_index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


@pytest.mark.parametrize(
    "method",
    [
        fusion.Method(metric="delta"),
        fusion.Method(metric="C", score="scan"),
        fusion.Method(reduce="prune", score="delta", match="lowest"),
    ],
    ids=["metric", "metric and score", "score"],
)
@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_layers_fuse_by_parts_of_their_own_mixers(method, class_token):
    """And leave the class tokens alone, wherever they are."""
    plan = (3, 0, 2, 0, 0, 4)
    model = build(class_token=class_token)
    fusion.inject(model, plan, method)
    mixed = []
    for block in model.layers:
        block.mixer.register_forward_hook(lambda *args: mixed.append(args[-1]))
    with fusion.trace(model) as trace:
        features = model.forward_features(images())
    for r, before, out, matching in zip(plan, trace.before, mixed, trace.matchings, strict=True):
        assert isinstance(out, tuple) == (r > 0)
        if r:
            hidden, parts = out
            assert tuple(parts) == method.parts
            score = {"place": None, "delta": parts.get("delta"), "scan": parts.get("scan", hidden).relu()}[method.score]
            score = None if score is None else score.mean(dim=-1)
            expected = fusion.match(parts.get(method.metric, hidden), r, before.cls_index, method, score)
            assert torch.equal(matching.index, expected.index)
    torch.testing.assert_close(features[:, : model.num_prefix_tokens], last_class_tokens(model, trace))


def test_fusing_by_parts_checkpointed_in_low_precision_and_compiled():
    method = fusion.Method(metric="B", score="delta")
    gradients = []
    for enabled in (False, True):
        model = build()
        fusion.inject(model, (3, 0, 2, 0, 0, 4), method)
        model.set_grad_checkpointing(enabled)
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    assert all(gradient.any() for gradient in gradients[0])

    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).isfinite().all()
    model.set_grad_checkpointing(False)
    model.layers = model.layers[:1]
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images()), model(images()))


def test_the_definition_under_transforms():
    """Forward mode, and the gradients of each image alone."""
    torch.manual_seed(0)
    model = models_mamba.vim_pico_patch2_8(depth=2, num_classes=3).double().eval()
    fusion.inject(model, [2, 1])
    weights, images = dict(model.named_parameters()), torch.rand(3, 3, 8, 8, dtype=torch.float64)

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    with ssm.use_backend("reference"):
        _, tangent = torch.func.jvp(model, (images,), (torch.ones_like(images),))
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, images)
        alone = torch.func.grad(loss)(weights, images[1])
    difference = (model(images + 1e-6) - model(images - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-8)
    for name, gradient in alone.items():
        torch.testing.assert_close(each[name][1], gradient)
