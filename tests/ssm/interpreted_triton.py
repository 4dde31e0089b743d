"""The Triton kernels in Triton's interpreter, on a CPU: run by test_triton.py in a process of its own.

The interpreter takes about a second for a few tokens, so shapes are small.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import models_mamba
import ssm
from ssm import reference, triton
from ssm.__main__ import scan_inputs
from ssm.inner import mix
from ssm.triton import launch

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FORWARD, GRADIENT = 1e-6, 5e-6  # largest error over the largest value


@pytest.fixture(autouse=True)
def backend():
    with ssm.use_backend("triton"):
        yield


def conv_inputs(B, L, D, W, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, L, D), (D, W), (D,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def run(op, inputs, reverse=False):
    out = op(*inputs, reverse=reverse)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return out, *torch.autograd.grad(out, inputs, upstream.to(out.dtype))


def errors(found, exact):
    assert [t.shape for t in found] == [t.shape for t in exact]
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]


def worst(name, exact, dtype, reverse):
    """Largest errors of output and gradients of an operation, against the reference in fp64."""
    inputs = [t.detach().to(dtype).requires_grad_() for t in exact]
    found = run(getattr(triton, name), inputs, reverse)
    assert all(t.dtype == dtype for t in found)
    forward, *gradients = errors(found, run(getattr(reference, name), exact, reverse))
    return forward, max(gradients)


@pytest.mark.parametrize(
    ("block", "B", "L", "D", "N", "reverse"),
    [
        (32, 2, 10, 40, 16, False),
        (32, 1, 9, 32, 16, True),
        (32, 2, 5, 8, 5, True),
        (32, 1, 3, 7, 2, False),
        (32, 1, 1, 1, 1, True),
        (8, 2, 10, 16, 16, False),
        (8, 1, 9, 12, 16, True),
        (8, 2, 5, 8, 5, True),
        (8, 1, 8, 7, 2, False),
        (8, 1, 1, 1, 1, True),
    ],
)
def test_scan_is_exact(monkeypatch, block, B, L, D, N, reverse):
    """Programs of 32 channels, as on a full GPU, and of 8, as on one that would be half idle."""
    monkeypatch.setattr(launch, "block_width", lambda *counts: block)
    forward, gradient = worst("selective_scan", scan_inputs(B, L, D, N, dtype=torch.float64), torch.float32, reverse)
    assert forward <= FORWARD
    assert gradient <= GRADIENT


def test_any_memory_layout():
    """Parameters of channels that lie apart, or are one number."""
    u, delta, A, B, C, _, z, bias = (tensor.detach() for tensor in scan_inputs(1, 3, 8, 4))
    apart, same = torch.stack((bias, -bias), dim=1)[:, 0], torch.ones(1).expand(8)
    for inputs in ((u, delta, A, B, C, same, z, apart), (u, delta, A, B, C, apart, z, same)):
        assert torch.allclose(triton.selective_scan(*inputs), reference.selective_scan(*inputs), atol=1e-5)
    weight = torch.randn(8, 4)
    for inputs in ((u, weight, apart), (u, weight, same)):
        assert torch.allclose(triton.causal_conv1d(*inputs), reference.causal_conv1d(*inputs), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name):
    inputs = {other: tensor.detach() for other, tensor in zip(NAMES, scan_inputs(1, 3, 8, 4), strict=True)}
    inputs[name] = inputs[name][:-1] if name in ("A", "D", "delta_bias") else inputs[name][:, :-1]
    with pytest.raises(ValueError, match=f"{'delta' if name == 'u' else name} must be of shape"):
        triton.selective_scan(**inputs)


def test_a_filter_that_does_not_fit_is_refused():
    x, weight, bias = torch.zeros(1, 3, 8), torch.zeros(8, 4), torch.zeros(8)
    for wrong, name in (((x, weight[1:], bias), "weight"), ((x, weight, bias[1:]), "bias")):
        with pytest.raises(ValueError, match=f"{name} must be of shape"):
            triton.causal_conv1d(*wrong)
    with pytest.raises(ValueError, match="bias must be on cpu, not meta"):
        triton.causal_conv1d(x, weight, bias.to("meta"))


@pytest.mark.parametrize(("L", "N"), [(3, 20), (1, 64)])
def test_many_states(L, N):
    forward, gradient = worst("selective_scan", scan_inputs(1, L, 8, N, dtype=torch.float64), torch.float32, False)
    assert forward <= FORWARD
    assert gradient <= GRADIENT


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("B", "L", "D", "W"), [(2, 11, 70, 4), (1, 34, 5, 3), (1, 1, 64, 4)])
def test_conv_is_exact(B, L, D, W, reverse):
    forward, gradient = worst("causal_conv1d", conv_inputs(B, L, D, W), torch.float32, reverse)
    assert forward <= FORWARD
    assert gradient <= GRADIENT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_the_reference(dtype):
    for name, exact in (
        ("selective_scan", scan_inputs(1, 6, 16, 16, dtype=torch.float64)),
        ("causal_conv1d", conv_inputs(1, 9, 16, 4)),
    ):
        low = [t.detach().to(dtype).requires_grad_() for t in exact]
        exact = run(getattr(reference, name), [t.detach().double().requires_grad_() for t in low])
        ours, plain = (errors(run(getattr(module, name), low), exact) for module in (triton, reference))
        # The interpreter cuts bfloat16 off where a GPU rounds: up to two thirds of a step more.
        rounding = torch.finfo(dtype).eps
        assert all(a <= max(b, rounding) * 1.2 for a, b in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize("many", [False, True])
def test_low_precision_with_many_states_and_sums(many):
    """What several launches add up is fp32 until the end."""
    inputs = [t.detach() for t in scan_inputs(1, 4, 8, 40 if many else 8)]
    low = dict(zip(NAMES, inputs, strict=True)) | {"u": inputs[0].bfloat16(), "z": inputs[6].bfloat16()}
    start = torch.randn(1, 4, 8).bfloat16()
    out, _ = triton.selective_scan_forward(**low, reverse=False, out=start.clone())
    exact = start.double() + reference.selective_scan(*(t.double() for t in low.values()))
    assert errors([out], [exact])[0] <= torch.finfo(torch.bfloat16).eps


def test_inputs_with_any_strides_and_gradients_into_slices():
    """Halves and slices of projections are read where they lie, and their gradients written beside each other."""
    B, L, D, N = 2, 5, 16, 4
    for reverse in (False, True):
        plain = dict(zip(NAMES, scan_inputs(B, L, D, N), strict=True))
        wide = torch.randn(B, L, 2 * D + 3 + 2 * N)
        views = dict(zip(("u", "z", "_", "B", "C"), wide.split((D, D, 3, N, N), -1), strict=True))
        with torch.no_grad():
            for name in ("u", "z", "B", "C"):
                views[name].copy_(plain[name])
        inputs = plain | {name: views[name] for name in ("u", "z", "B", "C")}
        inputs["delta"] = plain["delta"].detach().transpose(1, 2).contiguous().transpose(1, 2)  # channels apart
        expected, *gradients = run(triton.selective_scan, list(plain.values()), reverse)
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
        inputs = {name: t.detach() for name, t in inputs.items()}
        out, saved = triton.selective_scan_forward(**inputs, reverse=reverse)
        torch.testing.assert_close(out, expected.detach(), rtol=0, atol=0)
        buffer = torch.full_like(wide, 7.0)
        parts = dict(zip(("u", "dz", "_", "dB", "dC"), buffer.split((D, D, 3, N, N), -1), strict=True))
        into = {name: parts[name] for name in ("dz", "dB", "dC")}
        du, ddelta, dA, dD, dbias = triton.selective_scan_backward(
            upstream, saved, **inputs, reverse=reverse, **into, add=True
        )
        found = (du, ddelta, dA, into["dB"], into["dC"], dD, into["dz"] - 7, dbias)
        torch.testing.assert_close(found, tuple(gradients), rtol=1e-5, atol=1e-5)
        assert (parts["u"] == 7).all()
        assert (parts["_"] == 7).all()


def test_conv_gradient_into_a_slice():
    x, weight, bias = conv_inputs(2, 9, 8, 4, torch.float32)
    _, dx, *gradients = run(triton.causal_conv1d, [x, weight, bias], True)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    for add in (False, True):
        buffer = torch.full((2, 9, 20), 3.0)
        inputs = [t.detach() for t in (upstream.expand(2, 9, 8), x, weight, bias)]
        found = triton.causal_conv1d_backward(*inputs, reverse=True, dx=buffer[..., 4:12], add=add)
        torch.testing.assert_close(buffer[..., 4:12], dx + 3 * add)
        torch.testing.assert_close(found, tuple(gradients))
        assert (buffer[..., :4] == 3).all()
        assert (buffer[..., 12:] == 3).all()


def test_an_upstream_gradient_that_is_one_number():
    inputs = scan_inputs(1, 3, 8, 4)
    found = torch.autograd.grad(triton.selective_scan(*inputs).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(reference.selective_scan(*inputs).sum(), inputs))


def test_offsets_beyond_32_bits():
    """The second image lies 2^31 elements after the first one; pages that nobody touches take no memory."""
    far = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((2, 2, 8), (2**31, 8, 1))
    near = torch.randn(2, 2, 8, dtype=torch.float16)
    far.copy_(near)
    _, *others = (t.detach() for t in scan_inputs(2, 2, 8, 4))
    weight, bias = torch.randn(8, 4), torch.randn(8)
    for op, parameters in ((triton.selective_scan, others), (triton.causal_conv1d, (weight, bias))):
        torch.testing.assert_close(op(far, *parameters), op(near, *parameters), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "bad"), [("u", float("nan")), ("delta", float("nan")), ("z", float("inf"))])
def test_what_is_not_finite_shows_where_it_does_in_the_reference(name, bad):
    inputs = dict(zip(NAMES, (t.detach() for t in scan_inputs(1, 5, 8, 4)), strict=True))
    inputs[name].view(-1)[11] = bad
    found, expected = (op(**inputs) for op in (triton.selective_scan, reference.selective_scan))
    torch.testing.assert_close(found.isfinite(), expected.isfinite(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:overflow")  # of the sigmoid's exponential, which makes it 0
def test_extreme_steps_stay_finite():
    inputs = dict(zip(NAMES, scan_inputs(1, 5, 8, 4), strict=True))
    inputs["delta"] = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0]).view(1, 5, 1).repeat(1, 1, 8).requires_grad_()
    inputs["z"] = inputs["delta"].detach().flip(1).requires_grad_()
    found, expected = (run(op, list(inputs.values())) for op in (triton.selective_scan, reference.selective_scan))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_same_bits_every_time():
    inputs = scan_inputs(2, 5, 16, 4)
    first, second = (run(triton.selective_scan, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opcheck():
    scan = [t.detach() for t in scan_inputs(1, 2, 8, 4)]
    u, _, _, B, C, _, z, _ = scan
    conv = [t.detach() for t in conv_inputs(1, 2, 8, 4, torch.float32)]
    cases = {
        "causal_conv1d": (*conv, True),
        "causal_conv1d_backward": (conv[0], *conv, True, torch.zeros_like(conv[0]), True),
        "selective_scan": (*scan, True, torch.zeros_like(u), True),
        "selective_scan_backward": (u, *scan, True, *(torch.zeros_like(t) for t in (B, C, z)), True),
    }
    for name, inputs in cases.items():
        operator = getattr(torch.ops.vim_triton, name).default
        assert set(torch.library.opcheck(operator, inputs).values()) == {"SUCCESS"}, name


def tiny_model(**options):
    torch.manual_seed(0)
    return models_mamba.VisionMamba(
        img_size=(4, 8), patch_size=4, depth=1, embed_dim=4, d_state=4, num_classes=2, **options
    ).train()


def gradients(model, run_model, images):
    loss = run_model(images).float().square().sum()
    return loss, *torch.autograd.grad(loss, list(model.parameters()))


def test_a_model_by_every_way_of_training():
    """Compiled without a break, with layers or the scan recomputed, and in mixed precision: the same gradients."""
    torch._dynamo.reset()
    model, images = tiny_model(), torch.randn(1, 3, 4, 8)
    with ssm.use_backend("reference"):
        expected = gradients(model, model, images)
    plain = gradients(model, model, images)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
    compiled = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), images)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    model.set_scan_recompute(True)
    torch.testing.assert_close(gradients(model, model, images), plain, rtol=1e-4, atol=1e-6)
    model.set_scan_recompute(False)
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(model, model, images), plain, rtol=1e-4, atol=1e-6)
    model.set_grad_checkpointing(False)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(model, model, images)
    torch.testing.assert_close(mixed, expected, rtol=0.1, atol=0.05)


def test_checkpointing_the_operation():
    inputs = scan_inputs(1, 3, 8, 4)
    out = checkpoint(triton.selective_scan, *inputs, use_reentrant=False)
    found = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(triton.selective_scan(*inputs).sum(), inputs))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_mixer_as_one_function(recompute):
    mixer = ssm.BiMamba(4, d_state=4)
    xz = torch.randn(1, 5, 16, requires_grad=True)
    directions = [mixer.forward_ssm.weights(), mixer.backward_ssm.weights()]
    found, expected = (mix(xz, directions, backend, recompute) for backend in (triton, reference))
    torch.testing.assert_close(found, expected)
    inputs = [xz, *directions[0], *directions[1]]
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
