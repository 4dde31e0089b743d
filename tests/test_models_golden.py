"""The model against an independent implementation: values and gradients for every golden model."""

import pytest
import torch

import models_mamba
import ssm

MODELS = [
    "vim_none_midcls_p8",
    "vim_v2_doublecls_p8",
    "vim_v2_frontcls_p8",
    "vim_v2_midcls_droppath_train",
    "vim_v2_midcls_nonsquare",
    "vim_v2_midcls_p4",
    "vim_v2_midcls_p8",
    "vim_v2_midcls_p8_s4",
    "vim_v2_nocls_mean_p8",
    "vim_v2_nocls_none_p8",
]
VALUE, GRADIENT = 3e-6, 3e-5


class ScaleImages(torch.nn.Module):
    """Drop path with its draws given: one factor for each image."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale.view(-1, 1, 1).to(x.dtype)


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request):
    if ssm.unavailable(request.param):
        pytest.skip(ssm.unavailable(request.param))
    with ssm.use_backend(request.param):
        yield request.param


@pytest.fixture(params=MODELS)
def golden(request, load_golden):
    return load_golden(request.param)


@pytest.fixture
def model(golden, golden_model):
    model = golden_model(golden)
    if "drop_path_scale" in golden:
        holders = [*model.layers, model]
        assert [holder.drop_path.drop_prob for holder in holders] == pytest.approx(golden["drop_path_probs"])
        for holder, scale in zip(holders, golden["drop_path_scale"], strict=True):
            holder.drop_path = ScaleImages(scale)
    return model


def test_logits_and_features(golden, model, assert_close):
    features = model.forward_features(golden["input"])
    assert_close(model.forward_head(features, pre_logits=True), golden["features"], VALUE)
    assert_close(model(golden["input"]), golden["logits"], VALUE)


def test_fp64(golden, model, assert_close):
    assert_close(model.double()(golden["input"].double()), golden["logits_fp64"], 1e-12)


def test_every_layer(golden, model, assert_close):
    tokens = model._embed(golden["input"])
    assert tokens.cls_index.tolist() == [golden["token_position"]] * len(golden["input"])
    assert_close(tokens.hidden, golden["tokens"], VALUE)
    for i, block in enumerate(model.layers):
        tokens = block(tokens)
        assert_close(tokens.hidden, golden["layer_hidden"][i], VALUE, f"hidden {i}")
        assert_close(tokens.residual, golden["layer_residual"][i], VALUE, f"residual {i}")


def test_mixer(golden, model, assert_close):
    assert_close(model.layers[0].mixer(golden["layer0_mixer_in"]), golden["layer0_mixer_out"], VALUE)


def test_final_norm_with_class_tokens_first(golden, model, assert_close):
    expected = golden["final_norm_out"]
    places = golden["token_position"]
    others = [i for i in range(expected.shape[1]) if i not in places]
    assert_close(model.forward_features(golden["input"]), expected[:, places + others], VALUE)


def test_gradients(golden, model, assert_close):
    images = golden["input"].clone().requires_grad_()
    loss = (model(images) * golden["loss_coeffs"]).sum()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-5)
    assert_close(images.grad, golden["grad_input"], GRADIENT)
    expected = models_mamba.checkpoint_filter_fn(golden["grads"], model)
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, GRADIENT, name)
