"""Adding to the residual and normalising, in one pass: what PyTorch's own operations give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

import ssm
from ssm import add_and_normalize, cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def make(B, L, D, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, residual = (torch.randn(B, L, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    norm = nn.RMSNorm(D, eps=1e-5, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(D, generator=generator, dtype=dtype))
    return hidden, residual, norm


def results(hidden, residual, norm, backend):
    with ssm.use_backend(backend):
        outs = add_and_normalize(hidden, residual, norm)
    upstream = [torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype) for out in outs]
    return *outs, *torch.autograd.grad(outs, (hidden, residual, norm.weight), upstream)


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 4),
    L=st.integers(1, 20),
    D=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    threads=st.sampled_from([1, 2, 3, 8]),
)
def test_the_same_values_and_gradients(B, L, D, dtype, threads):
    inputs = make(B, L, D, dtype)
    expected = results(*inputs, "reference")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(*inputs, "cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], expected[0])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **tolerance)


def test_gradcheck_and_opcheck():
    hidden, residual, norm = make(2, 3, 5)
    inputs = (hidden, residual, norm.weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: torch.ops.vim.add_rms_norm(*args, 1e-5)[:2], inputs)
    assert set(torch.library.opcheck(torch.ops.vim.add_rms_norm.default, (*inputs, 1e-5)).values()) == {"SUCCESS"}


def test_no_second_derivative():
    hidden, residual, norm = make(2, 3, 5)
    _, out = add_and_normalize(hidden, residual, norm)
    (gradient,) = torch.autograd.grad(out.square().sum(), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative: use the reference backend"):
        gradient.sum().backward()


@pytest.fixture
def operations():
    """The names of the operations that a call runs."""

    def names(*args):
        with torch.profiler.profile() as profile:
            add_and_normalize(*args)
        return {event.key for event in profile.key_averages()}

    return names


def test_what_it_does_not_cover_goes_operation_by_operation(operations):
    hidden, residual, norm = make(2, 3, 8, torch.float32)
    assert "vim::add_rms_norm" in operations(hidden, residual, norm)
    assert "vim::add_rms_norm" not in operations(hidden.bfloat16(), residual, norm)
    assert "vim::add_rms_norm" not in operations(hidden, residual, nn.LayerNorm(8))
    with ssm.use_backend("reference"):
        assert "vim::add_rms_norm" not in operations(hidden, residual, norm)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(hidden.detach(), torch.ones_like(hidden))
        total, _ = add_and_normalize(dual, residual, norm)
        assert forward_ad.unpack_dual(total).tangent is not None
    seen = []
    norm.register_forward_hook(lambda *args: seen.append(args))
    assert "vim::add_rms_norm" not in operations(hidden, residual, norm)
    assert len(seen) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_refuses_what_does_not_fit(place):
    inputs = [torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.ones(5)]
    inputs[place] = inputs[place][..., :4]
    with pytest.raises(RuntimeError, match="must be of shape"):
        torch.ops.vim.add_rms_norm(*inputs, 1e-5)


@pytest.mark.parametrize("norm", [nn.RMSNorm(8), nn.RMSNorm(8, eps=1e-5, elementwise_affine=False)])
def test_norms_without_a_weight_or_an_epsilon(norm):
    hidden, residual = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    total, out = add_and_normalize(hidden, residual, norm)
    torch.testing.assert_close(total, residual + hidden, rtol=0, atol=0)
    torch.testing.assert_close(out, norm(residual + hidden), rtol=0, atol=0)
