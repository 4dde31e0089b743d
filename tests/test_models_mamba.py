"""The model as timm's tools see it: registry, verbs, published checkpoints, image sizes."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import fusion
import models_mamba
from models_mamba import VisionMamba, checkpoint_filter_fn, resize_pos_embed

KEYS = json.loads((Path(__file__).parent / "golden" / "vim_state_dict_keys.json").read_text())
PUBLISHED = [name for name in KEYS if name.startswith("vim_")]
REGISTERED = timm.list_models(module="models_mamba")
ONE_OF_EACH = [name for name in REGISTERED if name not in PUBLISHED]  # the published names have the same models
SMALL = {"img_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 16, "num_classes": 5}


def small(**kwargs):
    torch.manual_seed(0)
    return VisionMamba(**(SMALL | kwargs))


def images(*size):
    return torch.randn(2, 3, *(size or (16, 16)), generator=torch.Generator().manual_seed(1))


def test_registry_has_the_published_names_and_short_ones():
    assert set(PUBLISHED) <= set(REGISTERED)
    for short in ("tiny_patch16", "tiny_patch16_stride8", "small_patch16", "small_patch16_stride8", "base_patch16"):
        assert f"vim_{short}_224" in REGISTERED
    assert {"vim_nano_patch4_32", "vim_pico_patch2_8"} <= set(REGISTERED)


@pytest.mark.parametrize("name", REGISTERED)
def test_builds_with_timm(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    assert model.num_classes == 7
    cfg = model.default_cfg
    assert cfg["input_size"][1:] == model.patch_embed.img_size
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(cfg["classifier"]).out_features == 7


def test_every_model_is_a_function_of_the_module():
    names = {}
    exec("from models_mamba import *", names)
    assert {"VisionMamba", *REGISTERED} <= set(names)
    assert len(names["vim_pico_patch2_8"](depth=2).layers) == 2


def create(name, **kwargs):
    """A model of its full depth and width, for images of at most 64 pixels, and two of them."""
    size = min(64, timm.get_pretrained_cfg(name).input_size[-1])
    torch.manual_seed(0)
    return timm.create_model(name, img_size=size, **kwargs), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_model_runs_and_every_parameter_learns(name):
    model, x = create(name, num_classes=7)
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_model_gives_features(name):
    """timm's extractor keeps the layers that it needs, and finds what the whole model has after them."""
    model, x = create(name, num_classes=0)
    extractor, _ = create(name, features_only=True, out_indices=(0, 2))
    extractor.model.load_state_dict(model.state_dict(), strict=False)
    assert len(extractor.model.layers) == 3
    assert extractor.feature_info.channels() == [model.embed_dim] * 2
    assert extractor.feature_info.reduction() == [model.patch_embed.stride[0]] * 2
    with torch.no_grad():
        maps = extractor(x)
        final, intermediates = model.forward_intermediates(x, indices=[0, 2])
        torch.testing.assert_close(maps, intermediates)
        assert {tuple(each.shape) for each in maps} == {(2, model.embed_dim, *model.patch_embed.grid_size)}
        torch.testing.assert_close(model(x), model.forward_head(final, pre_logits=True))
        assert model(x).shape == (2, model.num_features)


def test_nano_has_about_half_a_million_parameters():
    assert sum(
        p.numel() for p in timm.create_model("vim_nano_patch4_32", num_classes=100).parameters()
    ) == pytest.approx(5e5, rel=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    """Names and shapes through the filter, and their number, equal the published model's."""
    with torch.device("meta"):
        model = timm.create_model(name)
    published = {
        key: torch.empty(shape, device="meta")
        for key, shape in zip(KEYS[name]["keys"], KEYS[name]["shapes"], strict=True)
    }
    renamed = checkpoint_filter_fn(published, model)
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert sum(p.numel() for p in model.parameters()) == KEYS[name]["n_params"]


def test_published_file_loads_with_its_namespace_and_nothing_else(tmp_path, load_golden, golden_model, assert_close):
    golden = load_golden("vim_v2_midcls_p8")
    torch.save({"model": golden["state_dict"], "args": argparse.Namespace(lr=1.0)}, tmp_path / "published.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(tmp_path / "published.pth", weights_only=True)
    model = golden_model(golden)
    torch.nn.init.zeros_(model.head.weight)
    model.load_state_dict(checkpoint_filter_fn(file, model))
    assert_close(model(golden["input"]), golden["logits"], 3e-6)


def test_our_own_state_dict_passes_the_filter_unchanged():
    model = small()
    filtered = checkpoint_filter_fn(model.state_dict(), model)
    assert list(filtered) == list(model.state_dict())


@pytest.mark.parametrize(("change", "complaint"), [("drop", "Missing key"), ("add", "Unexpected key")])
def test_loading_is_strict(change, complaint):
    model = small()
    state_dict = dict(model.state_dict())
    if change == "drop":
        state_dict.pop("norm_f.weight")
    else:
        state_dict["layers.0.mixer.conv1d_c.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=complaint):
        model.load_state_dict(checkpoint_filter_fn(state_dict, model))


@pytest.mark.parametrize("class_token", models_mamba.CLASS_TOKENS)
def test_position_embedding_keeps_class_rows_at_their_true_place(class_token):
    """A grid whose rows all hold their own value v, the class rows -1: after resizing, the same picture."""
    old, new = (4, 4), (6, 6)
    places = models_mamba.class_token_positions(class_token, 16)
    columns = torch.arange(4.0).repeat(4)  # smooth along the width, constant along the height
    rows = list(columns)
    for place in places:
        rows.insert(place, torch.tensor(-1.0))
    pos_embed = torch.stack(rows).view(1, -1, 1)
    resized = resize_pos_embed(pos_embed, new, class_token)
    new_places = models_mamba.class_token_positions(class_token, 36)
    assert (resized[0, list(new_places), 0] == -1).all()
    others = [i for i in range(resized.shape[1]) if i not in new_places]
    grid = resized[0, others, 0].view(new)
    assert torch.allclose(grid, grid[:1].expand(6, -1), atol=1e-5)  # still constant along the height
    assert (grid[0].diff() > 0).all()
    torch.testing.assert_close(resize_pos_embed(pos_embed, old, class_token, old), pos_embed)


def test_checkpoint_of_another_grid_is_resampled():
    source, target = small(), small(img_size=(24, 16))
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    expected = resize_pos_embed(source.pos_embed, (6, 4), "middle")
    torch.testing.assert_close(target.pos_embed, expected)
    assert target(images(24, 16)).shape == (2, 5)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (8, 32), (32, 8)])
def test_the_grid_in_a_checkpoint_tells_where_its_rows_belong(size):
    """Also where another grid has as many patches, or none of the two is a square."""
    source, target = small(img_size=(8, 32)), small(img_size=size)
    filtered = checkpoint_filter_fn({"model": source.state_dict(), "grid_size": (2, 8)}, target)
    expected = resize_pos_embed(source.pos_embed, target.patch_embed.grid_size, "middle", (2, 8))
    torch.testing.assert_close(filtered["pos_embed"], expected)
    assert torch.equal(filtered["pos_embed"], source.pos_embed) == (size == (8, 32))


def test_a_size_that_is_refused_changes_nothing():
    model = small()
    with pytest.raises(ValueError, match="does not divide into patches"):
        model.set_input_size(17)
    assert model(images()).shape == (2, 5)


def test_an_empty_batch_has_no_logits():
    model = small()
    assert model(images()[:0]).shape == (0, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()[:0]).shape == (0, 5)


def test_sizes_are_counted_in_fp32():
    """In bf16, 256 patches and one more would be 256."""
    model = small().bfloat16()
    assert model._embed(images().bfloat16()).size.dtype == torch.float32


def test_set_input_size():
    model = small()
    model.set_input_size((8, 24))
    assert model(images(8, 24)).shape == (2, 5)
    with pytest.raises(ValueError, match="takes images of"):
        model(images())


@pytest.mark.parametrize("kwargs", [*({"class_token": name} for name in models_mamba.CLASS_TOKENS), {"stride": 2}])
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (24, 24)])
def test_images_of_another_size_take_a_resampled_position_embedding(kwargs, size):
    """As a model that was set to this size for good computes, with gradients for the embedding that is kept."""
    model, other = small(**kwargs), small(**kwargs)
    before, expected = model.pos_embed.clone(), model(images())
    model.patch_embed.set_input_size(size)
    other.set_input_size(size)
    assert torch.equal(model(images(*size)), other(images(*size)))
    model(images(*size)).square().sum().backward()
    assert model.pos_embed.grad.abs().sum(-1).min() > 0  # of every row
    assert torch.equal(model.pos_embed, before)
    model.patch_embed.set_input_size(16)
    assert torch.equal(model(images()), expected)


def test_features_of_images_of_another_size():
    model = small()
    model.patch_embed.set_input_size((8, 12))
    maps = model.forward_intermediates(images(8, 12), intermediates_only=True)
    assert {tuple(each.shape) for each in maps} == {(2, model.embed_dim, 2, 3)}


def test_a_checkpoint_fits_whatever_size_the_images_have():
    source, target = small(), small()
    target.patch_embed.set_input_size(8)
    saved = {"model": source.state_dict(), "grid_size": source.pos_grid}
    target.load_state_dict(checkpoint_filter_fn(saved, target))
    assert torch.equal(target.pos_embed, source.pos_embed)


@pytest.mark.parametrize(("class_token", "prefix"), [("middle", 1), ("front", 1), ("double", 2), ("none", 0)])
def test_features_start_with_the_class_tokens(class_token, prefix):
    model = small(class_token=class_token)
    assert model.num_prefix_tokens == prefix
    features = model.forward_features(images())
    assert features.shape == (2, 16 + prefix, 16)
    torch.testing.assert_close(model.forward_head(features), model(images()))
    expected = features[:, :prefix].mean(1) if prefix else features.mean(1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)


def test_pools():
    model = small(class_token="none", global_pool="max")
    features = model.forward_features(images())
    torch.testing.assert_close(model(images()), model.head(features).amax(dim=1))
    with pytest.raises(ValueError, match="num_classes must be at least 0, not -1"):
        model.reset_classifier(-1)
    model.reset_classifier(4, "last")
    torch.testing.assert_close(model(images()), model.head(features[:, -1]))
    model.reset_classifier(4, "avg")
    torch.testing.assert_close(model(images()), model.head(features.mean(dim=1)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images()), features)


def test_a_model_without_pooling_classifies_every_token():
    model = small(global_pool="")
    torch.testing.assert_close(model(images()), model.head(model.forward_features(images())))


def test_average_pooling_leaves_class_tokens_out():
    model = small(global_pool="avg")
    features = model.forward_features(images())
    torch.testing.assert_close(model(images()), model.head(features[:, 1:].mean(dim=1)))


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"class_token": "center"}, "middle, front, double, none"),
        ({"global_pool": "mean"}, "token, avg, last, max"),
        ({"class_token": "none", "global_pool": "token"}, "needs a class token"),
        ({"img_size": (16, 18)}, "image width 18"),
        ({"img_size": (18, 16)}, "image height 18"),
        ({"img_size": 2}, "image height 2"),
        ({"img_size": 17, "patch_size": 4, "stride": 2}, "image height 17"),
    ],
)
def test_bad_arguments_are_one_clear_line(kwargs, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        small(**kwargs)
    assert "\n" not in str(error.value)


def test_unknown_arguments_are_errors():
    with pytest.raises(TypeError, match="if_bidirectional"):
        timm.create_model("vim_pico_patch2_8", if_bidirectional=True)


def test_classifier_verbs():
    model = small()
    assert model.get_classifier() is model.head
    model.reset_classifier(9)
    assert model(images()).shape == (2, 9)
    model.reset_classifier(0)
    assert model(images()).shape == (2, 16)


def test_intermediates():
    model = small().eval()
    final, intermediates = model.forward_intermediates(images())
    torch.testing.assert_close(final, model.forward_features(images()))
    assert [tuple(x.shape) for x in intermediates] == [(2, 16, 4, 4)] * 3
    last_normed = model.forward_intermediates(images(), [2], norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(last_normed[0], final[:, 1:])
    ((patches, prefix),) = model.forward_intermediates(
        images(), [2], norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    torch.testing.assert_close(torch.cat((prefix, patches), dim=1), final)
    (first,) = model.forward_intermediates(images(), [0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first, intermediates[0])
    with pytest.raises(ValueError, match="NCHW or NLC"):
        model.forward_intermediates(images(), output_fmt="NHWC")


def test_features_only():
    model = timm.create_model("vim_pico_patch2_8", features_only=True, out_indices=(1, 5))
    maps = model(torch.randn(2, 3, 8, 8))
    assert [tuple(x.shape) for x in maps] == [(2, 48, 4, 4)] * 2
    assert model.feature_info.reduction() == [2, 2]


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less():
    def gradients_and_saved_bytes(enable):
        model = small()
        model.set_grad_checkpointing(enable)
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images()).square().sum()
        loss.backward()
        return [p.grad for p in model.parameters()], saved

    gradients, saved = gradients_and_saved_bytes(False)
    checkpointed, saved_less = gradients_and_saved_bytes(True)
    torch.testing.assert_close(checkpointed, gradients)
    assert saved_less < saved / 2


def test_weight_decay_spares_embeddings_and_the_state_space():
    model = small(class_token="double")
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and not name.startswith(("pos_embed", "cls_token")) and not name.endswith("A_log")
    }


def test_groups_by_layer():
    model = small()
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["pos_embed"] == 0
    assert groups["layers.0.norm.weight"] == 1
    assert groups["layers.2.norm.weight"] == 3
    assert groups["head.weight"] >= 4


def test_dropout_follows_the_position_embedding():
    model = small(drop_rate=0.5).train()
    assert model.pos_drop.p == 0.5
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    torch.testing.assert_close(model(images()), model(images()), rtol=0, atol=0)


def test_overlapping_patches_and_channels():
    model = small(img_size=(16, 20), stride=2, in_chans=1)
    assert model.patch_embed.grid_size == (7, 9)
    assert model(torch.randn(2, 1, 16, 20)).shape == (2, 5)


# The order of the sequence, for ablation


def class_token_of(model, tokens, row):
    """Whether cls_index finds the class token, with that row of the position embedding, in every image."""
    expected = (model.cls_token + model.pos_embed[:, row])[0, 0]
    return all(torch.equal(tokens.hidden[b, tokens.cls_index[b, 0]], expected) for b in range(len(tokens.hidden)))


@pytest.mark.parametrize("chosen", [{"class_position": True}, {"tokens": True}])
def test_only_training_puts_tokens_into_a_random_order(chosen):
    model = small().eval()
    usual = model(images())
    model.set_random_order(**chosen)
    assert torch.equal(model(images()), usual)
    assert not torch.equal(model.train()(images()), usual)


def test_a_random_place_of_the_class_token_is_known():
    model, places = small().train(), set()
    model.set_random_order(class_position=True)
    for _ in range(60):
        tokens = model._embed(images(), trace_source=True)
        places.add(tokens.cls_index[0, 0].item())
        assert class_token_of(model, tokens, row=tokens.cls_index[0, 0])
    assert places == set(range(17))


def test_a_random_order_of_the_tokens_is_known():
    model, orders = small().train(), set()
    usual = model._embed(images(), trace_source=True)
    model.set_random_order(tokens=True)
    for _ in range(5):
        tokens = model._embed(images(), trace_source=True)
        orders.add(tuple(tokens.source[0].tolist()))
        assert class_token_of(model, tokens, row=8)
        for b in range(2):
            assert torch.equal(tokens.hidden[b, tokens.source[b]], usual.hidden[b, usual.source[b]])
    assert len(orders) == 5
    (maps,) = model.forward_intermediates(images(), indices=1, intermediates_only=True)
    assert maps.shape == (2, 16, 4, 4)


def test_a_trace_follows_a_random_order():
    model = small().train()
    usual = model._embed(images(), trace_source=True)
    model.set_random_order(tokens=True)
    with fusion.trace(model) as trace:
        model(images())
    first = trace.before[0]
    for b in range(2):
        assert torch.equal(first.residual[b, first.source[b]], usual.hidden[b, usual.source[b]])


@pytest.mark.parametrize("train_mode", [True, False])
def test_layers_are_computed_again_whenever_there_is_a_backward_pass(train_mode):
    model, calls = small().train(train_mode), []
    model.set_grad_checkpointing()
    model.layers[0].mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    model(images()).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(images())
    assert len(calls) == 3


@pytest.mark.parametrize("class_token", ["double", "none"])
def test_one_class_token_has_a_random_place(class_token):
    with pytest.raises(ValueError, match="`class_position` needs one class token"):
        small(class_token=class_token).set_random_order(class_position=True)
