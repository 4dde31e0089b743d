"""Ablations: each changes what it says, as a loop over tokens would, and nothing else."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fusion
from fusion import Method, TokenFusion, match


class Tokens(NamedTuple):
    hidden: Tensor
    residual: Tensor
    cls_index: Tensor
    size: Tensor
    source: Tensor | None = None


def make_tokens(B=2, L=17, D=6, K=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, residual = torch.randn(2, B, L, D, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 5, (B, L), generator=generator).double()
    cls_index = torch.rand(B, L, generator=generator).argsort(dim=1)[:, :K]
    return Tokens(hidden, residual, cls_index, size)


def similarity_by_hand(a, b, distance):
    if distance == "cosine":
        return (sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm())).item()
    if distance == "l2":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True)).sqrt().item()
    return -sum((x - y).abs() for x, y in zip(a, b, strict=True)).item()


def make_parts(B=2, L=17, seed=0):
    generator = torch.Generator().manual_seed(seed + 1)
    widths = {"delta": 10, "B": 4, "C": 4, "scan": 5}
    return {name: torch.randn(B, L, width, generator=generator).double() for name, width in widths.items()}


def score_by_hand(token, method):
    """How much a token is needed, by its row of the part that decides."""
    values = [max(value, 0) if method.score == "scan" else value for value in token.tolist()]
    return sum(values) / len(values)


def fuse_by_hand(tokens, parts, image, r, metric, method):
    """Hidden, residual and sizes of one image after fusion, as lists, by loops."""
    hidden, residual, size = tokens.hidden[image], tokens.residual[image], tokens.size[image]
    protected = tokens.cls_index[image].tolist()
    patches = [i for i in range(len(hidden)) if i not in protected]
    a, b = patches[::2], patches[1::2]
    if method.score != "place":
        score = {i: score_by_hand(parts[method.score][image, i], method) for i in patches}
        by_score = sorted(patches, key=score.get)
        a, b = sorted(by_score[: len(a)]), sorted(by_score[len(a) :])
    best = [max((similarity_by_hand(metric[i], metric[j], method.distance), j) for j in b) for i in a]
    order = sorted(range(len(a)), key=lambda k: score[a[k]] if method.match == "lowest" else -best[k][0])
    groups = {i: [i] for i in range(len(hidden))}
    for k in order[:r]:
        if method.reduce == "fuse":
            groups[best[k][1]].append(a[k])
        del groups[a[k]]
    kept = sorted(groups)
    if method.order == "concat":
        kept = [a[k] for k in order[r:]] + b
        for position in sorted(protected):
            kept.insert(max(position - r, 0), position)
    weight = size if method.average == "size" else torch.ones_like(size)

    def mean(x, group):
        return sum(x[i] * weight[i] for i in group) / sum(weight[i] for i in group)

    return (
        torch.stack([mean(hidden, groups[i]) for i in kept]),
        torch.stack([mean(residual, groups[i]) for i in kept]),
        torch.stack([sum(size[i] for i in groups[i_]) for i_ in kept]),
        [kept.index(i) for i in protected],
    )


def choices(*names):
    return {name: st.sampled_from(fusion.CHOICES[name]) for name in names}


LOWEST = {"match": st.just("lowest"), "score": st.sampled_from(["delta", "scan"])}
METHODS = st.one_of(
    st.builds(Method, **choices("average", "metric", "distance", "order", "score")),
    st.builds(Method, **choices("average", "metric", "distance", "order"), **LOWEST),
    st.builds(Method, reduce=st.just("prune"), **choices("metric", "distance", "order", "score")),
    st.builds(Method, reduce=st.just("prune"), **choices("order"), **LOWEST),
)


@settings(max_examples=60, deadline=None)
@given(METHODS, st.integers(4, 19), st.integers(0, 1), st.integers(0, 1000), st.data())
def test_every_combination_agrees_with_loops(method, length, K, seed, data):
    tokens, parts = make_tokens(L=length, K=K, seed=seed), make_parts(L=length, seed=seed)
    r = data.draw(st.integers(1, (length - K) // 2))
    fused = TokenFusion(r, method)(tokens, {name: parts[name] for name in method.parts})
    metric = {
        "hidden": tokens.hidden,
        "residual": tokens.residual,
        "input": tokens.hidden + tokens.residual,
        **parts,
    }[method.metric]
    for image in range(2):
        hidden, residual, size, classes = fuse_by_hand(tokens, parts, image, r, metric[image], method)
        assert_close(fused.hidden[image], hidden)
        assert_close(fused.residual[image], residual)
        assert_close(fused.size[image], size)
        assert fused.cls_index[image].tolist() == classes


@pytest.mark.parametrize(
    ("changed", "same_groups"),
    [
        ({"average": "size"}, True),
        ({"metric": "residual"}, False),
        ({"metric": "input"}, False),
        ({"distance": "l2"}, False),
        ({"distance": "l1"}, False),
        ({"order": "concat"}, True),
        ({"reduce": "prune"}, True),
        ({"match": "random"}, False),
        *[({"metric": part}, False) for part in ("delta", "B", "C", "scan")],
        *[({"score": part}, False) for part in ("delta", "scan")],
        *[({"score": part, "match": "lowest"}, False) for part in ("delta", "scan")],
    ],
)
def test_each_choice_changes_what_it_says_and_nothing_else(changed, same_groups):
    tokens, parts = make_tokens(L=33), make_parts(L=33)
    plain, other = (TokenFusion(8, method) for method in (Method(), Method(**changed)))
    pairs = []
    for layer in (plain, other):
        layer.observe = lambda m: pairs.append(sorted(zip(m.source[0].tolist(), m.target[0].tolist(), strict=True)))
    before, after = plain(tokens), other(tokens, parts)
    assert before.hidden.shape == after.hidden.shape
    assert not torch.equal(before.hidden, after.hidden)
    assert (pairs[0] == pairs[1]) == same_groups


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_distances_keep_their_precision_for_near_tokens(distance):
    """Far from zero, a distance by products would drown in rounding: here the nearest differ by a thousandth."""
    near = torch.tensor([[1000.0, 0.0], [1000.002, 0.0], [1001.0, 0.0], [1000.001, 0.0]])
    matching = match(near[None], 1, None, Method(distance=distance))
    assert matching.source.tolist() == [[0]]
    assert matching.target.tolist() == [[3]]


def test_random_matching_follows_the_seed_and_spreads():
    x = torch.zeros(1, 40, 4)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(match(x, 10, None, Method(match="random")))
    assert torch.equal(found[0].source, found[1].source)
    assert not torch.equal(found[0].source, found[2].source)
    assert len(found[0].target.unique()) > 4  # of 20, where equal similarities would all choose the first


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(2, 20), st.integers(0, 1000), st.data())
def test_concatenation_keeps_every_token_however_class_tokens_stand(K, patches, seed, data):
    tokens = make_tokens(L=patches + K, K=K, seed=seed)
    r = data.draw(st.integers(1, patches // 2))
    matching = match(tokens.hidden, r, tokens.cls_index, Method(order="concat"))
    for image in range(2):
        assert sorted([*matching.keep[image].tolist(), *matching.source[image].tolist()]) == list(range(patches + K))
        at = matching.cls_index[image].tolist()
        assert matching.keep[image, at].tolist() == tokens.cls_index[image].tolist()


def test_gradients_pass_where_values_do():
    tokens = make_tokens()
    hidden = tokens.hidden.requires_grad_()
    fused = TokenFusion(5, Method(reduce="prune"))(tokens)
    (gradient,) = torch.autograd.grad(fused.hidden.sum(), hidden)
    assert gradient.sum() == 2 * 12 * 6
    assert ((gradient == 0) | (gradient == 1)).all()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"average": "median"}, "`average` must be one of mean, size, not 'median'"),
        ({"distance": "l3"}, "`distance` must be one of cosine, l2, l1"),
        ({"reduce": "prune", "average": "size"}, "`average` size has no effect with `reduce` prune"),
        ({"match": "random", "metric": "residual"}, "no effect with `match` random"),
        ({"match": "random", "distance": "l1"}, "no effect with `match` random"),
        ({"metric": "dt"}, "`metric` must be one of hidden, residual, input, delta, B, C, scan, not 'dt'"),
        ({"match": "lowest"}, "`match` lowest needs `score` delta or scan"),
        *[
            ({"reduce": "prune", "match": "lowest", "score": "scan", **other}, "no effect with `reduce` prune and")
            for other in ({"metric": "B"}, {"distance": "l1"})
        ],
    ],
)
def test_refuses_what_is_unknown_or_without_effect(choices, message):
    with pytest.raises(ValueError, match=message):
        Method(**choices)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.integers(2, 20), st.sampled_from(["similar", "lowest"]), st.integers(0, 1000), st.data())
def test_tokens_that_vanish_have_lower_scores_than_those_they_fuse_into(K, patches, order, seed, data):
    tokens, score = make_tokens(L=patches + K, K=K, seed=seed), make_parts(L=patches + K, seed=seed)["scan"].mean(-1)
    score.scatter_(1, tokens.cls_index, -100.0)  # a class token never vanishes, however low its score is
    r = data.draw(st.integers(1, patches // 2))
    method = Method(match=order, score="scan")
    matching = match(tokens.hidden, r, tokens.cls_index, method, score)
    assert (score.gather(1, matching.source).amax(1) <= score.gather(1, matching.target).amin(1)).all()
    for image in range(2):
        vanished, classes = set(matching.source[image].tolist()), set(tokens.cls_index[image].tolist())
        assert not classes & {*vanished, *matching.target[image].tolist()}
        if order == "lowest":
            others = [i for i in range(patches + K) if i not in classes]
            assert vanished == set(sorted(others, key=score[image].tolist().__getitem__)[:r])


def test_what_a_method_wants_of_the_mixer():
    assert Method().parts == Method(metric="input", match="similar").parts == ()
    assert Method(metric="B").parts == ("B",)
    assert Method(metric="B", score="delta").parts == ("B", "delta")
    assert Method(metric="scan", score="scan").parts == ("scan",)
