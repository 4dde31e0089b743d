import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fusion import Method, match


@st.composite
def problems(draw, min_r=0):
    """Tokens [B, L, C] in fp64, class tokens anywhere, and any r from min_r to more than can fuse."""
    K = draw(st.integers(0, 3))
    L = draw(st.integers(K + max(1, 2 * min_r), 24))
    B, C = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    r = draw(st.integers(min_r, L))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(B, L, C, generator=generator, dtype=torch.float64)
    cls_index = torch.rand(B, L, generator=generator).argsort(dim=1)[:, :K] if K else None
    return x, r, cls_index


def quick(test):
    return settings(max_examples=60, deadline=None)(test)


def random_size(x):
    return torch.randint(1, 9, x.shape[:2], generator=torch.Generator().manual_seed(0)).to(x.dtype)


def pairs(matching):
    return [
        set(zip(source, target, strict=True))
        for source, target in zip(matching.source.tolist(), matching.target.tolist(), strict=True)
    ]


def fuse_by_hand(metric, x, r, protected, size):
    """The definition, for one image: the merged tokens, their sizes and the class tokens' new positions."""
    patches = [i for i in range(len(metric)) if i not in protected]
    a, b = patches[::2], patches[1::2]
    best = []
    for i in a:
        score, j = max((F.cosine_similarity(metric[i], metric[j], dim=0).item(), j) for j in b)
        best.append((score, i, j))
    groups = {i: [i] for i in range(len(metric))}
    for _, i, j in sorted(best, reverse=True)[: min(r, len(patches) // 2)]:
        groups[j].append(i)
        del groups[i]
    merged = [sum(x[i] * size[i] for i in group) / sum(size[i] for i in group) for group in groups.values()]
    sizes = [sum(size[i] for i in group) for group in groups.values()]
    return torch.stack(merged), torch.stack(sizes), [list(groups).index(i) for i in protected]


@quick
@given(problems(min_r=1), st.booleans())
def test_agrees_with_the_definition(problem, weighted):
    x, r, cls_index = problem
    metric = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    matching = match(metric, r, cls_index)
    size = random_size(x) if weighted else torch.ones_like(x[..., 0])
    merged, sizes = matching.merge(x, size) if weighted else (matching.merge(x), matching.group_sum(size))
    for b in range(len(x)):
        protected = [] if cls_index is None else cls_index[b].tolist()
        by_hand, sizes_by_hand, protected_by_hand = fuse_by_hand(metric[b], x[b], r, protected, size[b])
        assert_close(merged[b], by_hand)
        assert_close(sizes[b], sizes_by_hand)
        assert protected_by_hand == ([] if cls_index is None else matching.cls_index[b].tolist())


@quick
@given(problems())
def test_fields_fit_together(problem):
    x, r, cls_index = problem
    B, L, _ = x.shape
    K = 0 if cls_index is None else cls_index.shape[1]
    matching = match(x, r, cls_index)
    fused = min(r, (L - K) // 2)
    assert matching.source.shape == matching.target.shape == (B, fused)
    assert matching.keep.shape == matching.count.shape == (B, L - fused)
    assert (matching.cls_index is None) == (cls_index is None)
    assert (matching.keep.diff(dim=1) > 0).all()
    # Kept and vanished tokens are all tokens; each goes where index says.
    assert torch.equal(torch.cat([matching.keep, matching.source], dim=1).sort().values, torch.arange(L).expand(B, -1))
    assert torch.equal(matching.index.gather(1, matching.keep), torch.arange(L - fused).expand(B, -1))
    assert torch.equal(matching.index.gather(1, matching.source), matching.index.gather(1, matching.target))
    assert torch.equal(matching.count, F.one_hot(matching.index, L - fused).sum(dim=1))


@quick
@given(problems())
def test_sizes_are_conserved(problem):
    x, r, cls_index = problem
    size = random_size(x)
    matching = match(x, r, cls_index)
    _, merged_size = matching.merge(x, size)
    assert torch.equal(merged_size.sum(dim=1), size.sum(dim=1))
    assert torch.equal(matching.group_sum(size), merged_size)


@quick
@given(problems(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans())
def test_tokens_that_do_not_fuse_keep_every_bit(problem, dtype, weighted):
    x, r, cls_index = problem
    matching = match(x, r, cls_index)
    x = x.to(dtype)
    merged = matching.merge(x, random_size(x.float()))[0] if weighted else matching.merge(x)
    assert merged.dtype == dtype
    alone = matching.count == 1
    survivors = x.gather(1, matching.keep.unsqueeze(-1).expand_as(merged))
    assert torch.equal(merged[alone], survivors[alone])
    if cls_index is not None:
        assert alone.gather(1, matching.cls_index).all()
        assert torch.equal(matching.keep.gather(1, matching.cls_index), cls_index)


@quick
@given(problems())
def test_fusing_none_changes_nothing(problem):
    x, _, cls_index = problem
    matching = match(x, 0, cls_index)
    assert torch.equal(matching.merge(x), x)
    assert torch.equal(matching.index, torch.arange(x.shape[1]).expand(len(x), -1))
    assert cls_index is None or torch.equal(matching.cls_index, cls_index)


@quick
@given(problems(), st.randoms())
def test_images_do_not_influence_each_other(problem, random):
    x, r, cls_index = problem
    order = random.sample(range(len(x)), len(x))
    together = match(x, r, cls_index)
    shuffled = match(x[order], r, None if cls_index is None else cls_index[order])
    assert_close(shuffled.merge(x[order]), together.merge(x)[order])
    assert torch.equal(shuffled.index, together.index[order])


@quick
@given(problems(min_r=1), st.booleans())
def test_gradient_reaches_every_token(problem, weighted):
    x, r, cls_index = problem
    x.requires_grad_()
    matching = match(x, r, cls_index)
    merged = matching.merge(x, random_size(x))[0] if weighted else matching.merge(x)
    merged.sum().backward()
    size = random_size(x) if weighted else torch.ones_like(x[..., 0])
    share = size / matching.group_sum(size).gather(1, matching.index)
    assert_close(x.grad, share.detach().unsqueeze(-1).expand_as(x))


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted):
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    matching = match(x, 3, torch.tensor([[4], [0]]))
    size = random_size(x) if weighted else None
    assert torch.autograd.gradcheck(lambda x: matching.merge(x, size), x)
    assert torch.autograd.gradgradcheck(lambda x: matching.merge(x, size), x)


def test_choosing_keeps_nothing_for_a_gradient():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        matching = match(torch.randn(2, 9, 3, requires_grad=True), 3)
    assert saved == []
    assert not matching.merge(torch.randn(2, 9, 3)).requires_grad


def test_the_strongest_of_several_pairs_fuse():
    angles = torch.tensor([0.0, 0.3, 1.0, 1.1, 2.0, 2.2]).unsqueeze(0)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert pairs(match(tokens, 1)) == [{(2, 3)}]
    assert pairs(match(tokens, 2)) == [{(2, 3), (4, 5)}]
    assert pairs(match(tokens, 3)) == [{(2, 3), (4, 5), (0, 1)}]


def test_length_does_not_count_only_direction():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 9.0], [5.0, 5.0], [0.1, 0.01]]])
    assert pairs(match(tokens, 1)) == [{(0, 3)}]


def test_class_token_does_not_take_a_turn():
    tokens = torch.randn(1, 5, 4)
    matching = match(tokens, 2, torch.tensor([[0]]))
    assert set(matching.source[0].tolist()) == {1, 3}
    assert set(matching.target[0].tolist()) <= {2, 4}


@pytest.mark.parametrize("patches", [0, 1])
def test_nothing_left_to_fuse(patches):
    x = torch.randn(2, 2 + patches, 4)
    matching = match(x, 3, torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(matching.merge(x), x)


def test_half_precision_is_compared_in_full():
    metric = 1 + 0.1 * torch.randn(4, 64, 32)  # cosines too close together for bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = match(metric, 8)
    assert pairs(under_autocast) == pairs(match(metric, 8))

    half = metric.bfloat16()
    assert pairs(match(half, 8)) == pairs(match(half.float(), 8))


def test_double_metric_stays_double():
    slopes = torch.tensor([0, 3e-5, 3e-5, 1e-5], dtype=torch.float64)  # cosines that fp32 cannot tell from 1
    assert pairs(match(torch.stack([torch.ones(4), slopes], dim=-1).unsqueeze(0), 1)) == [{(2, 1)}]


def test_any_memory_layout():
    matching = match(torch.randn(3, 10, 4), 4, torch.tensor([[5], [0], [9]]))
    x = torch.randn(4, 10, 3).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert torch.equal(matching.merge(x), matching.merge(x.contiguous()))


def test_compiles_without_a_break():
    def fuse(x, cls_index):
        matching = match(x, 3, cls_index)
        return matching.merge(x), *matching.merge(x, torch.ones_like(x[..., 0])), matching.cls_index

    x, cls_index = torch.randn(2, 11, 4), torch.tensor([[5], [2]])
    compiled = torch.compile(fuse, fullgraph=True, backend="aot_eager")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    for ours, eager in zip(compiled(a, cls_index), fuse(b, cls_index), strict=True):
        assert_close(ours, eager)
    compiled(a, cls_index)[0].square().sum().backward()
    fuse(b, cls_index)[0].square().sum().backward()
    assert_close(a.grad, b.grad)


def test_refuses_a_negative_r():
    with pytest.raises(ValueError, match="at least 0, not -1"):
        match(torch.randn(1, 4, 2), -1)


@pytest.mark.parametrize("shape", [(2, 7, 3), (1, 8, 3)])
def test_refuses_tokens_that_were_not_matched(shape):
    with pytest.raises(ValueError, match=r"matched \(2, 8\) tokens"):
        match(torch.randn(2, 8, 3), 2).merge(torch.randn(shape))
    with pytest.raises(ValueError, match=r"matched \(2, 8\) tokens"):
        match(torch.randn(2, 8, 3), 2).prune(torch.randn(shape))


@pytest.mark.parametrize("order", ["similar", "lowest"])
def test_refuses_a_score_that_is_missing(order):
    with pytest.raises(ValueError, match="the method's `score` delta is missing"):
        match(torch.randn(1, 4, 2), 1, method=Method(score="delta", match=order))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_never_waits_for_the_gpu():
    x = torch.randn(4, 65, 32, device="cuda", requires_grad=True)
    cls_index = torch.full((4, 1), 32, device="cuda")
    match(x, 8, cls_index).merge(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        match(x, 8, cls_index).merge(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
