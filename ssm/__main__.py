"""python -m ssm: which backends of the scan run here, how exact and how fast they are, and what mends the others."""

import platform
import shutil
import time

import torch

import ssm
from ssm import cuda, reference
from ssm.backends import BACKENDS

SHAPE = {"B": 2, "L": 65, "D": 96, "N": 16}


def scan_inputs(B: int, L: int, D: int, N: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list:
    """Inputs of selective_scan with magnitudes as in a trained model, each a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = -torch.arange(1.0, N + 1, dtype=torch.float64).repeat(D, 1)
    values = (draw(B, L, D), draw(B, L, D), A, draw(B, L, N), draw(B, L, N), draw(D), draw(B, L, D), draw(D) - 4)
    return [value.to(device, dtype).requires_grad_() for value in values]


def outputs_and_gradients(scan, inputs: list, reverse: bool) -> list[torch.Tensor]:
    """The output and all gradients of a scan, on the CPU in fp64."""
    out = scan(*inputs, reverse=reverse)
    grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
    return [tensor.detach().double().cpu() for tensor in (out, *grads)]


def largest_error(name: str, device: str) -> float:
    """Largest difference to the reference in fp64, over the largest value, of output and gradients, either way."""
    worst = 0.0
    for reverse in (False, True):
        exact = scan_inputs(**SHAPE, dtype=torch.float64)
        expected = outputs_and_gradients(reference.selective_scan, exact, reverse)
        with ssm.use_backend(name):
            found = outputs_and_gradients(ssm.selective_scan, scan_inputs(**SHAPE, device=device), reverse)
        for a, b in zip(found, expected, strict=True):
            worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    return worst


def milliseconds(name: str, device: str, repeats: int = 10) -> float:
    """Median time of a scan, forward and backward."""
    inputs, times = scan_inputs(**SHAPE, device=device), []
    with ssm.use_backend(name):
        for _ in range(repeats):
            start = time.perf_counter()
            outputs_and_gradients(ssm.selective_scan, inputs, False)
            times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[repeats // 2]


def describe(name: str) -> str:
    """One line on a backend: what it does here when it is actually run."""
    reason = ssm.unavailable(name)
    if reason:
        return f"not available: {reason}"
    device = "cuda" if name == "cuda" else "cpu"
    try:
        return f"works: largest error {largest_error(name, device):.1e}, {milliseconds(name, device):.2f} ms"
    except Exception as error:  # whatever a broken installation raises is what the report is for
        mend = f"; {cuda.INSTALL}" if name == "cuda" else ""
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())}{mend}"


def main() -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {gpu}")
    print(f"C++ compiler: {shutil.which('c++') or 'none'}, ninja: {shutil.which('ninja') or 'none on the path'}")
    print(f"scan of {SHAPE}, forward and backward, against the reference in fp64:")
    for name in BACKENDS[1:]:
        print(f"  {name:<10} {describe(name)}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        name, reason = ssm.pick(device)
        print(f"auto on {device}: {name} ({reason})")


if __name__ == "__main__":
    main()
