"""Matching and merging in C++ against their definition: the same pairs, and the same means to the last bit."""

from dataclasses import fields
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusion.backends
from fusion import Method, TokenFusion, cpu, match

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
POSITIONS = ("source", "target", "keep", "index", "cls_index", "count")


class Tokens(NamedTuple):
    hidden: Tensor
    residual: Tensor
    cls_index: Tensor
    size: Tensor
    source: Tensor | None = None


KINDS = (
    "random",
    "few values",
    "repeated",
    "pairs",
    "zeros",
    "alike",
    "huge",
    "small",
    "denormal",
    "not numbers",
    "infinite",
)


@st.composite
def metrics(draw):
    """A metric [B, L, D] with ties, hardly different cosines or extreme values, class tokens anywhere, and any r."""
    K, B, D = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    L = draw(st.integers(K + 2, 50))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    metric = torch.randn(B, L, D, generator=generator)
    kind = draw(st.sampled_from(KINDS))
    some = torch.randint(L, (3,), generator=generator)
    if kind == "few values":
        metric = metric.round()
    elif kind == "repeated":
        metric = metric[:, : L // 3 + 1].repeat(1, 3, 1)[:, :L]
    elif kind == "pairs":
        metric = metric.repeat_interleave(2, dim=1)[:, :L]
    elif kind == "zeros":
        metric[:, some] = 0
    elif kind == "alike":  # to fp32's last digits
        metric = metric[:, :1] + 1e-3 * metric
    elif kind in ("huge", "small", "denormal"):
        metric *= {"huge": 1e37, "small": 1e-12, "denormal": 1e-40}[kind]
    elif kind in ("not numbers", "infinite"):
        metric[:, some, : D // 2 + 1] = torch.nan if kind == "not numbers" else torch.inf
    cls_index = torch.rand(B, L, generator=generator).argsort(dim=1)[:, :K] if K else None
    return metric.to(dtype), draw(st.integers(1, (L - K) // 2)), cls_index


def by(backend, function, *args):
    with fusion.backend(backend):
        return function(*args)


def assert_same_choice(found, expected):
    for name in POSITIONS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or torch.equal(a, b), name


@settings(max_examples=300, deadline=None)
@given(metrics(), st.sampled_from([1, 2, 3, 8]))
def test_the_same_pairs_with_any_number_of_threads(problem, threads):
    before = torch.get_num_threads()
    expected = by("reference", match, *problem)
    torch.set_num_threads(threads)
    try:
        assert_same_choice(by("cpu", match, *problem), expected)
        assert_same_choice(by("reference", match, *problem), expected)
    finally:
        torch.set_num_threads(before)


def test_of_equal_pairs_those_with_the_lower_places_fuse():
    matching = by("cpu", match, torch.ones(1, 9, 4), 2, torch.tensor([[0]]))
    assert matching.source.tolist() == [[1, 3]]
    assert matching.target.tolist() == [[2, 2]]


def test_any_memory_layout():
    metric = torch.randn(4, 12, 3).permute(2, 1, 0)
    cls_index = torch.tensor([[5, 0, 11]]).T
    assert_same_choice(by("cpu", match, metric, 4, cls_index), by("reference", match, metric, 4, cls_index))
    assert_same_choice(by("cpu", match, metric, 4, cls_index), by("cpu", match, metric.contiguous(), 4, cls_index))


def test_autocast_lowers_nothing():
    metric = 1 + 0.1 * torch.randn(4, 64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = by("cpu", match, metric, 8)
    assert_same_choice(found, by("cpu", match, metric, 8))


@st.composite
def tokens(draw):
    B, L, K, D = draw(st.integers(1, 3)), draw(st.integers(5, 40)), draw(st.integers(0, 2)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    hidden, residual = (
        (30 * torch.randn(B, L, D, generator=generator, dtype=torch.float64)).to(draw(st.sampled_from(dtypes)))
        for _ in range(2)
    )
    size = torch.randint(1, 6, (B, L), generator=generator).to(draw(st.sampled_from(dtypes[:2])))
    cls_index = torch.rand(B, L, generator=generator).argsort(dim=1)[:, :K]
    return Tokens(hidden.requires_grad_(), residual.requires_grad_(), cls_index, size)


METHODS = st.builds(
    Method,
    average=st.sampled_from(fusion.CHOICES["average"]),
    metric=st.sampled_from(fusion.CHOICES["metric"]),
    distance=st.sampled_from(fusion.CHOICES["distance"]),
    order=st.sampled_from(fusion.CHOICES["order"]),
    score=st.sampled_from(fusion.CHOICES["score"]),
)


@settings(max_examples=100, deadline=None)
@given(METHODS, tokens(), st.data())
def test_the_same_tokens_and_gradients(method, entering, data):
    r = data.draw(st.integers(1, (entering.hidden.shape[1] - entering.cls_index.shape[1]) // 2))
    parts = {name: 10 * entering.residual.detach().roll(1, dims=1) for name in method.parts}
    left = [by(backend, TokenFusion(r, method), entering, parts) for backend in ("cpu", "reference")]
    for name in ("hidden", "residual", "size", "cls_index"):
        found, expected = (getattr(fused, name) for fused in left)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
    upstream = [torch.randn_like(left[0].hidden), torch.randn_like(left[0].residual)]
    leaves = (entering.hidden, entering.residual)
    found, expected = (torch.autograd.grad((fused.hidden, fused.residual), leaves, upstream) for fused in left)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("average", ["mean", "size"])
def test_means_of_large_values_in_half_precision(backend, average):
    """The sum of two is more than fp16 holds, their mean is not."""
    entering = Tokens(*torch.full((2, 1, 4, 3), 40000.0).half(), torch.zeros(1, 0, dtype=torch.long), torch.ones(1, 4))
    fused = by(backend, TokenFusion(2, Method(average=average)), entering)
    assert torch.equal(fused.hidden, entering.hidden[:, :2])
    assert torch.equal(fused.residual, entering.residual[:, :2])


def merge_inputs(by_size):
    hidden, residual = (torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    matching = by("cpu", match, hidden.detach(), 3, torch.tensor([[4], [0]]))
    size = torch.randint(1, 4, (2, 9)).double()
    return hidden, residual, size, matching.keep, matching.source, matching.index, by_size


@pytest.mark.parametrize("by_size", [False, True])
def test_gradcheck(by_size):
    hidden, residual, *rest = merge_inputs(by_size)
    assert torch.autograd.gradcheck(lambda *x: torch.ops.vim.merge(*x, *rest)[:2], (hidden, residual))
    assert torch.autograd.gradgradcheck(lambda *x: torch.ops.vim.merge(*x, *rest)[:2], (hidden, residual))


def test_opcheck():
    hidden, residual, *rest = merge_inputs(True)
    operands = ((hidden, residual, *rest), (hidden[:, 3:], residual[:, 3:], *rest))
    for op, inputs in zip((torch.ops.vim.merge, torch.ops.vim.merge_backward), operands, strict=True):
        assert set(torch.library.opcheck(op.default, inputs).values()) == {"SUCCESS"}
    cls_index = torch.tensor([[4], [0]])
    assert set(torch.library.opcheck(torch.ops.vim.match.default, (hidden.detach(), cls_index, 3)).values()) == {
        "SUCCESS"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": torch.randn(9, 3)}, "metric must be"),
        ({"cls_index": torch.tensor([[4]])}, "cls_index must be"),
        ({"cls_index": torch.tensor([[4], [9]])}, "a class token at 9 of 9 tokens"),
        ({"cls_index": torch.tensor([[4, 4], [1, 2]])}, "two class tokens at 4"),
        ({"cls_index": torch.tensor([[4.0], [0.0]])}, "wrong dtype"),
        ({"r": 5}, "can fuse 1 to 4 tokens, not 5"),
    ],
)
def test_matching_refuses(change, message):
    arguments = {"metric": torch.randn(2, 9, 3), "cls_index": torch.tensor([[4], [0]]), "r": 3} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vim.match(*arguments.values())


@pytest.mark.parametrize(
    ("place", "other", "message"),
    [
        (0, torch.randn(2, 8, 3), "hidden must be of 2 images and 9 tokens"),
        (1, torch.randn(1, 9, 3), "residual must be of 2 images and 9 tokens"),
        (2, torch.ones(2, 8), "size must be"),
        (3, torch.zeros(2, 5, dtype=torch.long), "are not the tokens of index"),
        (4, torch.full((2, 3), 9), "no token at 9 of 9"),
        (5, torch.full((2, 9), -1), "no token at -1 of 6"),
    ],
)
def test_merging_refuses(place, other, message):
    inputs = list(merge_inputs(False))
    inputs[place] = other
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vim.merge(*inputs)


def test_the_choice_of_the_backend():
    with pytest.raises(ValueError, match="no fusion backend cuda: choose from auto, reference, cpu"):
        fusion.use_backend("cuda")
    metric = torch.randn(1, 9, 3)
    with torch.profiler.profile() as profile:
        by("reference", match, metric, 2)
    assert not any("vim::match" in event.key for event in profile.key_averages())
    with torch.profiler.profile() as profile:
        match(metric, 2)
    assert any("vim::match" in event.key for event in profile.key_averages())


def test_every_layer_merges_in_one_operation():
    hidden, residual = torch.randn(2, 2, 12, 3)
    entering = Tokens(hidden.requires_grad_(), residual, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 12))
    with fusion.backend("cpu"), torch.profiler.profile() as profile:
        left = TokenFusion(2)(TokenFusion(2)(entering))
    assert not left.size.requires_grad
    assert {event.key: event.count for event in profile.key_averages()}["vim::merge"] == 2


def test_under_transforms_the_definition_merges():
    hidden, residual = torch.randn(2, 2, 12, 3)
    entering = Tokens(hidden, residual, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 12))

    def loss(hidden):
        return TokenFusion(2)(entering._replace(hidden=hidden)).hidden.square().sum()

    leaf = hidden.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(hidden), expected)


def test_every_field_is_compared():
    assert {field.name for field in fields(fusion.Matching)} == {*POSITIONS, "rows"}


def test_preparing_compiles_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "unavailable", lambda: asked.append("cpu"))
    fusion.backends.prepare("cpu")
    assert asked == ["cpu"]
