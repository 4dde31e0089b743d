"""Tracing: groups composed exactly through all layers, counts, and no trace of it afterwards."""

from copy import deepcopy

import pytest
import torch

import fusion
from fusion import Method
from models_mamba import CLASS_TOKENS, VisionMamba


def build(class_token="middle", plan=(0, 3, 0, 2, 1), method=Method()):
    torch.manual_seed(0)
    model = VisionMamba(img_size=16, patch_size=4, depth=5, embed_dim=16, num_classes=5, class_token=class_token)
    fusion.inject(model, plan, method)
    return model.eval()


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", ["keep", "concat"])
@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_groups_are_the_matchings_composed(class_token, order):
    model = build(class_token, method=Method(order=order))
    with fusion.trace(model) as trace:
        model(IMAGES)
    assert [matching is not None for matching in trace.matchings] == [False, True, False, True, True]
    length = 16 + model.num_prefix_tokens
    assert trace.tokens == (length, length, length - 3, length - 3, length - 5, length - 6)
    for image in range(3):
        classes = trace.before[0].cls_index[image].tolist()
        places = [i for i in range(length) if i not in classes]
        for layer, matching in enumerate(trace.matchings):
            if matching is not None:
                gone = dict(zip(matching.source[image].tolist(), matching.target[image].tolist(), strict=True))
                keep = matching.keep[image].tolist()
                places = [keep.index(gone.get(place, place)) for place in places]
            assert trace.groups(layer)[image].tolist() == places
            holders = set(places)
            assert len(holders) == trace.tokens[layer + 1] - model.num_prefix_tokens
            assert holders.isdisjoint(trace.after[layer].cls_index[image].tolist())


def test_sizes_count_the_patches_of_each_group():
    model = build()
    with fusion.trace(model) as trace:
        model(IMAGES)
    last = trace.after[-1]
    for image in range(3):
        counted = torch.bincount(trace.groups(-1)[image], minlength=trace.tokens[-1]).float()
        counted[last.cls_index[image]] = 1
        assert torch.equal(counted, last.size[image])


def test_every_pass_is_recorded_anew_and_changes_nothing():
    model = build()
    plain = model(IMAGES)
    with fusion.trace(model) as trace:
        model(IMAGES[:1])
        assert torch.equal(model(IMAGES), plain)
    assert len(trace.after) == 5
    assert len(trace.groups(0)) == 3


def test_nothing_stays_behind():
    model = build()
    with pytest.raises(RuntimeError, match="on purpose"), fusion.trace(model):
        raise RuntimeError("on purpose")
    seen = []
    model.layers[-1].register_forward_hook(lambda _, inputs, output: seen.append(output.source))
    model(IMAGES)
    assert seen == [None]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(block.fusion._forward_hooks for block in model.layers)
    assert all(getattr(block.fusion, "observe", None) is None for block in model.layers)


def test_similarity_and_redundancy():
    tokens = build()._embed(IMAGES)
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0], [3.0, 0.0], [0.0, -1.0]])
    tokens = tokens._replace(hidden=hidden[None], cls_index=torch.tensor([[2]]))
    assert torch.allclose(fusion.similarity(tokens)[0, 0], torch.tensor([1.0, 0.0, 0.5**0.5, 1.0, 0.0]))
    # The class token at 2 is no patch; the nearest of the others: 1 to 0 and 3, and 0 to 1 and 4.
    assert fusion.redundancy(tokens).item() == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_a_single_patch_is_like_no_other():
    tokens = build()._embed(IMAGES)
    tokens = tokens._replace(hidden=tokens.hidden[:, :2], cls_index=torch.zeros(3, 1, dtype=torch.long))
    assert fusion.redundancy(tokens).isnan().all()


def test_a_pass_that_stops_early_leaves_nothing_of_the_one_before():
    model = build()
    with fusion.trace(model) as trace:
        model(IMAGES)
        model.forward_intermediates(IMAGES, indices=[1], stop_early=True)
    assert len(trace.before) == len(trace.after) == len(trace.matchings) == 2


def test_a_copy_is_not_traced():
    model = build()
    with fusion.trace(model):
        copy = deepcopy(model)
    with fusion.trace(copy) as trace:
        copy(IMAGES)
    assert [matching is not None for matching in trace.matchings] == [False, True, False, True, True]


def test_one_trace_at_a_time():
    model = build()
    with fusion.trace(model), pytest.raises(RuntimeError, match="traced already"), fusion.trace(model):
        pass
