"""The mixer as one function: what it computes and its gradients are those of operation after operation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import ssm
from ssm import BiMamba, cpu, reference
from ssm.composed import Composed
from ssm.inner import mix

needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
BACKENDS = [pytest.param(cpu, marks=needs_cpu, id="cpu"), pytest.param(reference, id="reference")]


def directions(mixer):
    return [ssm.weights() for ssm in (mixer.forward_ssm, mixer.backward_ssm) if ssm is not None]


def one_by_one(mixer, xz):
    """The sum over directions by the operations of the reference, in autograd."""
    x, z = xz.chunk(2, dim=-1)
    with ssm.use_backend("reference"):
        return sum(ssm_(x, z) for ssm_ in (mixer.forward_ssm, mixer.backward_ssm) if ssm_ is not None)


def make(B, L, D, dtype=torch.float64, **options):
    torch.manual_seed(0)
    mixer = BiMamba(D, **options).to(dtype)
    return mixer, torch.randn(B, L, 4 * D, dtype=dtype, requires_grad=True)


def parameters(mixer):
    return [tensor for weights in directions(mixer) for tensor in weights]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(
    B=st.integers(1, 4),
    L=st.integers(1, 40),
    D=st.integers(1, 20),
    N=st.integers(1, 9),
    bidirectional=st.booleans(),
    recompute=st.booleans(),
)
def test_any_shape(backend, B, L, D, N, bidirectional, recompute):
    mixer, xz = make(B, L, D, d_state=N, bidirectional=bidirectional)
    inputs = [xz, *parameters(mixer)]
    expected = one_by_one(mixer, xz)
    found = mix(xz, directions(mixer), backend, recompute)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck(backend, recompute):
    mixer, xz = make(2, 4, 1, d_state=2, expand=2)

    def run(xz, *parameters):
        size = len(parameters) // 2
        weights = [type(directions(mixer)[0])(*parameters[i : i + size]) for i in (0, size)]
        return mix(xz, weights, backend, recompute)

    assert torch.autograd.gradcheck(run, (xz, *parameters(mixer)))


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    """Tokens in half, parameters in fp32, as under autocast."""
    mixer, xz = make(2, 20, 16, torch.float32)
    expected, found = one_by_one(mixer, xz), mix(xz.to(dtype), directions(mixer), cpu)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    inputs = [xz, *parameters(mixer)]
    gradients = [torch.autograd.grad(out.float().square().sum(), inputs) for out in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.fixture
def mixes(monkeypatch):
    """How often the mixer ran as one function, or as one operation."""
    calls = []
    for name, function in (("ssm.mixer.mix", mix), ("ssm.cpu.mix", cpu.mix)):
        monkeypatch.setattr(name, lambda *args, _call=function: (calls.append(args), _call(*args))[1])
    return calls


@needs_cpu
class TestWhenTheMixerCallsIt:
    def run(self, mixer, hidden, backend="cpu"):
        with ssm.use_backend(backend):
            return mixer(hidden)

    def test_in_training_and_in_inference(self, mixes):
        mixer, hidden = BiMamba(8), torch.randn(2, 5, 8)
        out = self.run(mixer, hidden)
        with torch.no_grad():
            self.run(mixer, hidden)
        assert len(mixes) == 2
        torch.testing.assert_close(out, self.run(mixer, hidden, "reference"))
        assert len(mixes) == 2  # the reference is the definition, operation after operation

    def test_the_reference_recomputes_by_it(self, mixes):
        mixer = BiMamba(8)
        mixer.recompute = True
        self.run(mixer, torch.randn(2, 5, 8), "reference")
        assert len(mixes) == 1

    def test_not_where_a_layer_is_watched_or_replaced(self, mixes):
        mixer, hidden = BiMamba(8), torch.randn(2, 5, 8)
        seen = []
        handle = mixer.forward_ssm.x_proj.register_forward_hook(lambda *args: seen.append(args))
        self.run(mixer, hidden)
        handle.remove()
        assert len(seen) == 1
        torch.nn.utils.parametrizations.weight_norm(mixer.backward_ssm.x_proj)
        self.run(mixer, hidden)
        assert mixes == []

    def test_not_under_transforms(self, mixes):
        mixer, hidden = BiMamba(8), torch.randn(2, 5, 8)
        mixer.recompute = True
        with ssm.use_backend("reference"):
            found = torch.func.grad(lambda x: mixer(x).square().sum())(hidden)
            assert mixes == []
            hidden.requires_grad_()
            (expected,) = torch.autograd.grad(mixer(hidden).square().sum(), hidden)
            assert len(mixes) == 1
        torch.testing.assert_close(found, expected)


@needs_cpu
def test_inference_keeps_no_states():
    mixer, xz = make(2, 5, 4)
    with torch.no_grad():
        assert Composed(cpu).mix_forward(xz, parameters(mixer), keep=False, recompute=False)[1] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["conv_weight", "x_proj", "dt_proj", "A_log", "D", "dt_bias"])
def test_a_weight_changed_in_place_before_backward_is_an_error(backend, recompute, name):
    mixer, xz = make(2, 5, 4)
    out = mix(xz, directions(mixer), backend, recompute)
    with torch.no_grad():
        getattr(mixer.backward_ssm.weights(), name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@needs_cpu
def test_one_derivative(monkeypatch):
    monkeypatch.setattr(cpu, "mixes_in_one", lambda *args: False)
    mixer, hidden = BiMamba(4), torch.randn(1, 3, 4, requires_grad=True)
    with ssm.use_backend("cpu"):
        (gradient,) = torch.autograd.grad(mixer(hidden).square().sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.sum().backward()
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="the reference"):
            mixer(forward_ad.make_dual(hidden.detach(), torch.ones_like(hidden)))
    with ssm.use_backend("reference"):
        (gradient,) = torch.autograd.grad(mixer(hidden).square().sum(), hidden, create_graph=True)
        gradient.sum().backward()
        with forward_ad.dual_level():
            dual = mixer(forward_ad.make_dual(hidden.detach(), torch.ones_like(hidden)))
            assert forward_ad.unpack_dual(dual).tangent.abs().sum() > 0
