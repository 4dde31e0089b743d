from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fusion

DEPTH, PATCHES, WIDTH = 6, 36, 8


class Tokens(NamedTuple):
    hidden: Tensor
    residual: Tensor
    cls_index: Tensor
    size: Tensor
    source: Tensor | None = None


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = nn.Linear(WIDTH, WIDTH)
        self.fusion = nn.Identity()

    def forward(self, tokens):
        residual = tokens.residual + tokens.hidden
        return self.fusion(tokens._replace(hidden=self.mixer(residual), residual=residual))


class PatchEmbed(nn.Module):
    num_patches = PATCHES


class Model(nn.Module):
    """The least that inject asks for; returns the tokens after every layer."""

    def __init__(self, num_prefix_tokens=1):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.patch_embed = PatchEmbed()
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, tokens):
        after = []
        for block in self.layers:
            tokens = block(tokens)
            after.append(tokens)
        return after


def make_tokens(K=1, sources=True):
    B, L = 3, PATCHES + K
    cls_index = torch.rand(B, L).argsort(dim=1)[:, :K]
    is_patch = torch.ones(B, L, dtype=torch.bool).scatter(1, cls_index, False)
    source = torch.arange(L).expand(B, -1)[is_patch].view(B, PATCHES) if sources else None
    return Tokens(torch.randn(B, L, WIDTH), torch.randn(B, L, WIDTH), cls_index, torch.ones(B, L), source)


def fused_after_each_layer(model, tokens):
    lengths = [tokens.hidden.shape[1]] + [after.hidden.shape[1] for after in model(tokens)]
    return tuple(before - after for before, after in pairwise(lengths))


@pytest.mark.parametrize("K", [0, 1, 2])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("no", DEPTH), (0, 0, 0, 0, 0, 0)),
        (("all", DEPTH, None, 3), (3, 3, 3, 3, 3, 3)),
        (("interleaved", DEPTH, None, 4), (0, 4, 0, 4, 0, 4)),
        (("lower", DEPTH, 4, 3), (3, 3, 3, 3, 0, 0)),
        (("upper", DEPTH, 4, 5), (0, 0, 0, 0, 5, 5)),
    ],
)
def test_a_strategy_shortens_the_sequence_where_it_says(arguments, expected, K):
    model = Model(K)
    fusion.inject(model, fusion.plan(*arguments))
    assert fused_after_each_layer(model, make_tokens(K)) == expected


def test_half_of_the_patches_can_fuse():
    model = Model()
    fusion.inject(model, (18, 9, 4, 2, 1, 1))  # 36 18 9 5 3 2 1
    assert fused_after_each_layer(model, make_tokens()) == (18, 9, 4, 2, 1, 1)


def test_injecting_again_replaces_and_zeros_remove():
    model, tokens = Model(), make_tokens()
    plain = model(tokens)[-1]
    fusion.inject(model, (0, 5, 0, 0, 0, 5))
    fusion.inject(model, (2, 0, 0, 0, 0, 3))
    assert fused_after_each_layer(model, tokens) == (2, 0, 0, 0, 0, 3)

    fusion.inject(model, (0,) * DEPTH)
    assert all(type(block.fusion) is nn.Identity for block in model.layers)
    assert torch.equal(model(tokens)[-1].hidden, plain.hidden)


def test_layers_that_fuse_by_parts_of_the_mixer_say_which():
    model = Model()
    fusion.inject(model, (0, 5, 0, 0, 0, 5), fusion.Method(metric="B", score="delta"))
    assert [block.wanted for block in model.layers] == [(), ("B", "delta"), (), (), (), ("B", "delta")]
    fusion.inject(model, (0, 5, 0, 0, 0, 0))
    assert not any(block.wanted for block in model.layers)


def test_checkpoints_do_not_know_of_fusion():
    model = Model()
    state = model.state_dict()
    fusion.inject(model, fusion.plan("all", DEPTH, tokens=3))
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)


@pytest.mark.parametrize("K", [0, 1, 2])
def test_tokens_know_what_they_hold(K):
    tokens = make_tokens(K)
    tokens = tokens._replace(residual=torch.zeros_like(tokens.residual).scatter(1, tokens.source.unsqueeze(-1), 1.0))
    model = Model(K)
    fusion.inject(model, (4,) * DEPTH)
    for after in model(tokens):
        length = after.hidden.shape[1]
        held = nn.functional.one_hot(after.source, length).sum(dim=1)
        is_class_token = torch.zeros(3, length, dtype=torch.long).scatter(1, after.cls_index, 1)
        assert torch.equal(after.size, (held + is_class_token).float())


def test_hidden_decides_and_residual_follows():
    tokens = make_tokens()
    matching = fusion.match(tokens.hidden, 6, tokens.cls_index)
    fused = fusion.TokenFusion(6)(tokens)
    assert torch.equal(fused.hidden, matching.merge(tokens.hidden))
    assert torch.equal(fused.residual, matching.merge(tokens.residual))
    assert torch.equal(fused.cls_index, matching.cls_index)


def test_means_are_not_weighted_by_size():
    tokens = make_tokens()
    heavy = tokens._replace(size=torch.arange(1.0, PATCHES + 2).expand(3, -1))
    assert torch.equal(fusion.TokenFusion(6)(heavy).hidden, fusion.TokenFusion(6)(tokens).hidden)


def test_class_token_stays_itself_through_all_layers():
    model, tokens = Model(), make_tokens()
    for block in model.layers:
        block.mixer.load_state_dict({"weight": torch.eye(WIDTH), "bias": torch.zeros(WIDTH)})
    at = torch.arange(3).unsqueeze(1)
    alone = [after.hidden[at, after.cls_index] for after in model(tokens)]
    fusion.inject(model, fusion.plan("all", DEPTH, tokens=4))
    for after, expected in zip(model(tokens), alone, strict=True):
        assert_close(after.hidden[at, after.cls_index], expected)


def test_hidden_and_residual_keep_their_own_precision():
    tokens = make_tokens(sources=False)
    fused = fusion.TokenFusion(6)(tokens._replace(hidden=tokens.hidden.bfloat16()))
    assert fused.hidden.dtype == torch.bfloat16
    assert fused.residual.dtype == torch.float32
    assert fused.source is None


def test_gradients_reach_every_input():
    model, tokens = Model(), make_tokens()
    tokens.hidden.requires_grad_()
    tokens.residual.requires_grad_()
    fusion.inject(model, fusion.plan("all", DEPTH, tokens=4))
    last = model(tokens)[-1]
    (last.hidden.square().sum() + last.residual.square().sum()).backward()
    assert tokens.hidden.grad.any(dim=-1).all()
    assert tokens.residual.grad.any(dim=-1).all()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_an_injected_model_compiles_without_a_break():
    model, tokens = Model(), make_tokens()
    fusion.inject(model, fusion.plan("upper", DEPTH, 4, 5))
    compiled = torch.compile(lambda tokens: model(tokens)[-1], fullgraph=True, backend="aot_eager")
    ours, eager = compiled(tokens), model(tokens)[-1]
    assert_close(ours.hidden, eager.hidden)
    assert torch.equal(ours.cls_index, eager.cls_index)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((3,) * 5, "has length 5, the model depth 6"),
        ((3,) * 7, "has length 7, the model depth 6"),
        ((0, 0, -1, 0, 0, 0), r"not -1 \(layer 2\)"),
        ((0, 1.5, 0, 0, 0, 0), r"not 1.5 \(layer 1\)"),
        ((19, 0, 0, 0, 0, 0), "layer 0 has 36 patch tokens and can fuse at most 18, not 19"),
        ((9, 9, 9, 5, 0, 0), "layer 3 has 9 patch tokens and can fuse at most 4, not 5"),
        ((18, 9, 4, 2, 1, 2), "layer 5 has 2 patch tokens and can fuse at most 1, not 2"),
    ],
)
def test_refuses_a_plan_that_does_not_fit_and_leaves_the_model_alone(plan, message):
    model = Model()
    fusion.inject(model, (0, 2, 0, 0, 0, 0))
    before = [block.fusion for block in model.layers]
    with pytest.raises(ValueError, match=message):
        fusion.inject(model, plan)
    assert [block.fusion for block in model.layers] == before


def test_shows_how_much_it_fuses():
    assert repr(fusion.TokenFusion(7)) == "TokenFusion(r=7)"
