"""Symbolic tracing by torch.fx, as timm's own tests of its models do it: forward and backward, and features by node."""

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from torchvision.models.feature_extraction import get_graph_node_names

import fusion
import models_mamba  # noqa: F401, registers the models

VARIANTS = [
    {},
    {"class_token": "front"},
    {"class_token": "double"},
    {"class_token": "none"},
    {"class_token": "none", "global_pool": "max"},
    {"bidirectional": False},
    {"drop_path_rate": 0.3},
]


def small(name="vim_pico_patch2_8", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, depth=3, num_classes=5, **kwargs)


def fuse(model):
    fusion.inject(model, fusion.plan("all", depth=3, tokens=2))
    return model


def traced(model):
    """timm's extractor of the model's last node, which computes what the model does."""
    return create_feature_extractor(model, [last_node(model)])


def last_node(model):
    leaves = {
        "leaf_modules": timm.layers.get_notrace_modules(),
        "autowrap_functions": timm.layers.get_notrace_functions(),
    }
    train, test = get_graph_node_names(model, tracer_kwargs=leaves)
    assert train == test
    return test[-1]


def images(model, count=2):
    return torch.randn(count, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_a_traced_model_computes_the_same(kwargs, fused):
    model = small(**kwargs).eval()
    model = fuse(model) if fused else model
    graph = traced(model).eval()
    for count in (2, 3):  # no shape of the batch is fixed
        (found,) = graph(images(model, count)).values()
        torch.testing.assert_close(found, model(images(model, count)))


@pytest.mark.parametrize("name", ["vim_nano_patch4_32", "vim_tiny_patch16_stride8_224"])
def test_a_traced_model_of_any_grid(name):
    model = small(name, img_size=32).eval()
    (found,) = traced(model).eval()(images(model)).values()
    torch.testing.assert_close(found, model(images(model)))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_pass_through_a_traced_model(fused):
    model = small()
    model = (fuse(model) if fused else model).train()
    (found,) = traced(model).train()(images(model)).values()
    found.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(images(model)).square().mean().backward()
    torch.testing.assert_close(gradients, {name: p.grad for name, p in model.named_parameters()})


def test_training_drops_paths_at_random_and_evaluation_does_not():
    model = small(drop_path_rate=0.5)
    graph = traced(model)
    for train in (True, False):
        graph.train(train)
        first, second = (next(iter(graph(images(model)).values())) for _ in range(2))
        assert torch.equal(first, second) != train


def test_features_by_the_names_of_layers():
    model = fuse(small()).eval()
    found = create_feature_extractor(model, ["layers.0.mixer", "layers.2.norm", "norm_f"]).eval()(images(model))
    assert [x.shape[1] for x in found.values()] == [17, 13, 11]
    with fusion.trace(model) as trace:
        model(images(model))
    torch.testing.assert_close(found["layers.0.mixer"], trace.before[0].hidden)
