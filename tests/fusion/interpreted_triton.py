"""Matching and merging in Triton, in its interpreter on a CPU: run by test_triton.py in a process of its own.

They must find the definition's pairs, and its means to the last bit. Shapes are small, for the interpreter is slow.
"""

import pytest
import torch

import fusion
from fusion import Matching, Method, TokenFusion, match
from models_mamba import Tokens

POSITIONS = ("source", "target", "keep", "index", "cls_index", "count")


def by(backend, function, *args):
    with fusion.backend(backend):
        return function(*args)


def random_metric(B, L, D, seed=0):
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(seed))


def protected(B, L, K, seed=0):
    """Different positions in every image, in any order."""
    return torch.rand(B, L, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :K] if K else None


def not_numbers(metric, value):
    metric[:, [1, 4]] = value
    return metric


@pytest.mark.parametrize(
    ("metric", "K", "r"),
    [
        (random_metric(2, 9, 4), 1, 4),
        (random_metric(2, 8, 3), 0, 4),
        (random_metric(1, 3, 2), 1, 1),
        (random_metric(2, 12, 5).bfloat16(), 3, 2),
        (random_metric(2, 12, 2).round(), 2, 3),
        (torch.ones(1, 11, 4), 1, 2),
        (torch.zeros(1, 7, 3), 0, 2),
        (random_metric(2, 4, 3).repeat(1, 3, 1), 1, 3),
        (not_numbers(random_metric(2, 10, 4), torch.nan), 1, 2),
        (not_numbers(random_metric(2, 10, 4), torch.inf), 1, 4),
        (random_metric(1, 6, 70).double(), 0, 2),
        (random_metric(1, 69, 3), 2, 20),
        (random_metric(5, 9, 2).permute(2, 1, 0), 1, 3),
    ],
)
def test_the_same_pairs(metric, K, r):
    cls_index = protected(*metric.shape[:2], K)
    found, expected = (by(backend, match, metric, r, cls_index) for backend in ("triton", "reference"))
    for name in POSITIONS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def test_autocast_lowers_nothing(monkeypatch):
    """A GPU's vectors are fp32, which autocast would lower; here they are fp64, so the switch itself is watched."""
    lowered, bmm = [], torch.bmm

    def spy(*args):
        lowered.append(torch.is_autocast_enabled("cpu"))
        return bmm(*args)

    monkeypatch.setattr(torch, "bmm", spy)
    with torch.autocast("cpu", torch.bfloat16):
        by("triton", match, random_metric(2, 9, 4), 2)
    assert lowered == [False]


def test_of_equal_pairs_those_with_the_lower_places_fuse():
    matching = by("triton", match, torch.ones(1, 9, 4), 2, torch.tensor([[0]]))
    assert matching.source.tolist() == [[1, 3]]
    assert matching.target.tolist() == [[2, 2]]


def test_the_choice_is_exact():
    """Triton matches when it is chosen, and not where the method is another one."""
    with pytest.raises(ValueError, match="choose from auto, reference, cpu, triton"):
        fusion.use_backend("tritone")
    with torch.profiler.profile() as profile:
        by("triton", match, random_metric(1, 5, 2), 1)
        by("triton", match, random_metric(1, 5, 2), 1, None, Method(distance="l2"))
    assert {event.key: event.count for event in profile.key_averages()}["vim_fusion::match"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("average", ["mean", "size"])
def test_the_same_tokens_and_gradients(dtype, average):
    B, L, D = 2, 9, 5
    hidden = (30 * random_metric(B, L, D)).to(dtype).requires_grad_()
    residual = (30 * random_metric(B, L, D, 1)).requires_grad_()
    with torch.no_grad():
        hidden[:, 3] = -0.0
    size = 1 + torch.arange(B * L).view(B, L) % 5
    entering = Tokens(hidden, residual, protected(B, L, 1), size.to(torch.float32), None)
    left = [by(backend, TokenFusion(4, Method(average=average)), entering) for backend in ("triton", "reference")]
    for name in ("hidden", "residual", "size", "cls_index"):
        found, expected = (getattr(fused, name) for fused in left)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
        assert torch.equal(found.signbit(), expected.signbit()), name
    upstream = [torch.randn_like(left[0].hidden), torch.randn_like(left[0].residual)]
    found, expected = (torch.autograd.grad((f.hidden, f.residual), (hidden, residual), upstream) for f in left)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("average", ["mean", "size"])
def test_many_tokens_into_one_and_means_of_large_values(average):
    """Sources are added in the order of their pairs; the sum of two is more than fp16 holds, their mean is not."""
    hidden = torch.full((1, 7, 3), 40000.0).half()
    residual = 10 ** torch.linspace(-6, 6, 21).view(1, 7, 3)
    positions = [torch.tensor([row]) for row in ([2, 0, 4, 6], [1, 1, 1, 1], [1, 3, 5], [0, 0, 0, 1, 0, 2, 0])]
    matching = Matching(*positions, None, torch.tensor([[5, 1, 1]]))
    size = torch.arange(1.0, 8.0).view(1, 7)
    found, expected = (
        by(backend, matching.merge_both, hidden, residual, size, average == "size")
        for backend in ("triton", "reference")
    )
    assert found[0].isfinite().all()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def merge_inputs():
    hidden, residual = (torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    matching = by("reference", match, hidden.detach(), 2, torch.tensor([[4]]))
    return hidden, residual, torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0]]).double(), matching


@pytest.mark.parametrize("by_size", [False, True])
def test_gradcheck(by_size):
    hidden, residual, size, matching = merge_inputs()
    with fusion.backend("triton"):
        merge = lambda *tokens: matching.merge_both(*tokens, size, by_size)[:2]  # noqa: E731
        assert torch.autograd.gradcheck(merge, (hidden, residual), fast_mode=True)
        assert torch.autograd.gradgradcheck(merge, (hidden, residual), fast_mode=True)


def test_opcheck():
    by("triton", lambda: None)  # registers the operators
    hidden, residual, size, m = merge_inputs()
    positions = m.keep, m.source, m.index
    cases = {
        "match": (hidden.detach(), torch.tensor([[4]]), 2),
        "merge": (hidden, residual, size, *positions, True),
        "merge_backward": (hidden[:, 2:], residual[:, 2:], size, *positions, True),
    }
    for name, inputs in cases.items():
        operator = getattr(torch.ops.vim_fusion, name).default
        assert set(torch.library.opcheck(operator, inputs).values()) == {"SUCCESS"}, name
