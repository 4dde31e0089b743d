"""The mixer as one operation in C++: the values and gradients of its projections and the function between them."""

import pytest
import torch
from torch import nn

import ssm
from ssm import BiMamba, cpu
from ssm.composed import flat

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def make(dtype=torch.float32, recompute=False, **options):
    torch.manual_seed(0)
    mixer = BiMamba(20, **options).to(dtype)
    mixer.recompute = recompute
    return mixer, torch.randn(3, 40, 20, dtype=dtype, requires_grad=True)


def operations(mixer, hidden):
    """The names of the operations that a call runs."""
    with ssm.use_backend("cpu"), torch.profiler.profile() as profile:
        mixer(hidden)
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_same_to_the_last_bit(monkeypatch, recompute, bidirectional):
    mixer, hidden = make(recompute=recompute, bidirectional=bidirectional)
    inputs, upstream = [hidden, *mixer.parameters()], torch.randn(3, 40, 20)

    def results():
        with ssm.use_backend("cpu"):
            out, parts = mixer(hidden, ("scan",))
        return [out, parts["scan"], *torch.autograd.grad(out, inputs, upstream)]

    assert "vim::mix" in operations(mixer, hidden)
    found = results()
    monkeypatch.setattr(cpu, "mixes_in_one", lambda *args: False)
    for a, b in zip(found, results(), strict=True):
        assert torch.equal(a, b)
    assert not found[1].requires_grad


@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck(recompute):
    torch.manual_seed(0)
    mixer, hidden = BiMamba(2, d_state=2).double(), torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    directions = flat([mixer.forward_ssm.weights(), mixer.backward_ssm.weights()])

    def run(hidden, in_proj, out_proj, *directions):
        return cpu.mix(hidden, in_proj, directions, out_proj, recompute)[0]

    assert torch.autograd.gradcheck(run, (hidden, mixer.in_proj.weight, mixer.out_proj.weight, *directions))


def test_any_memory_layout():
    mixer, hidden = make()
    spread = hidden.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    (expected,), (found,) = (torch.autograd.grad(mixer(x).square().sum(), x) for x in (hidden, spread))
    torch.testing.assert_close(found, expected)


def test_without_gradients():
    mixer, hidden = make()
    with torch.no_grad():
        assert torch.equal(mixer(hidden), mixer(hidden.detach().requires_grad_()))
    with torch.inference_mode():
        assert torch.equal(mixer(hidden), mixer(hidden.clone()))
    assert not mixer.requires_grad_(False)(hidden.detach()).requires_grad


def test_some_parameters_frozen():
    mixer, hidden = make()
    (expected,) = torch.autograd.grad(mixer(hidden).square().sum(), mixer.out_proj.weight)
    mixer.requires_grad_(False).out_proj.requires_grad_()
    mixer(hidden.detach()).square().sum().backward()
    assert torch.equal(mixer.out_proj.weight.grad, expected)
    assert mixer.in_proj.weight.grad is None


@pytest.mark.parametrize("name", ["in_proj", "out_proj", "forward_ssm.x_proj"])
def test_a_weight_changed_in_place_before_backward_is_an_error(name):
    mixer, hidden = make()
    out = mixer(hidden)
    with torch.no_grad():
        mixer.get_submodule(name).weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_it_does_not_cover_goes_operation_by_operation():
    mixer, hidden = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert "vim::mix" not in operations(mixer, hidden)
    assert "vim::mix" not in operations(make(torch.bfloat16)[0], hidden.bfloat16())
    mixer.out_proj = nn.Linear(40, 20)  # with a bias
    assert "vim::mix" not in operations(mixer, hidden)
    mixer, seen = make()[0], []
    mixer.in_proj.register_forward_hook(lambda *args: seen.append(args))
    assert "vim::mix" not in operations(mixer, hidden)
    assert len(seen) == 1


def test_no_second_derivative():
    mixer, hidden = make()
    (gradient,) = torch.autograd.grad(mixer(hidden).square().sum(), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative: use the reference backend"):
        gradient.sum().backward()
