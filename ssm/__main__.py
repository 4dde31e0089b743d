"""Show which backends of the scan run here (python -m ssm), their errors and times, and what the rest would need."""

import argparse
import platform
import shutil
import time
from pathlib import Path
from statistics import median

import torch

import ssm
from ssm import cuda, reference, speed
from ssm.backends import BACKENDS

SMALL = {"B": 2, "L": 65, "D": 96, "N": 16}  # errors are measured at this size
DEVICES = ("cpu", "cuda")


def scan_inputs(B: int, L: int, D: int, N: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list:
    """Make inputs of selective_scan with magnitudes as in a trained model, each a leaf that requires a gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = -torch.arange(1.0, N + 1, dtype=torch.float64).repeat(D, 1)
    values = (draw(B, L, D), draw(B, L, D), A, draw(B, L, N), draw(B, L, N), draw(D), draw(B, L, D), draw(D) - 4)
    return [value.to(device, dtype).requires_grad_() for value in values]


def outputs_and_gradients(scan, inputs: list, reverse: bool) -> list[torch.Tensor]:
    """Return the output and all gradients of a scan, on the CPU in fp64."""
    out = scan(*inputs, reverse=reverse)
    grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
    return [tensor.detach().double().cpu() for tensor in (out, *grads)]


def largest_error(name: str, device: str) -> float:
    """Return the largest relative error of output and gradients, both directions, against the reference in fp64."""
    worst = 0.0
    for reverse in (False, True):
        exact = scan_inputs(**SMALL, dtype=torch.float64)
        expected = outputs_and_gradients(reference.selective_scan, exact, reverse)
        with ssm.use_backend(name):
            found = outputs_and_gradients(ssm.selective_scan, scan_inputs(**SMALL, device=device), reverse)
        for a, b in zip(found, expected, strict=True):
            worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    return worst


def devices(name: str) -> list[str]:
    """Return the devices of this machine that a backend runs on."""
    with ssm.use_backend(name):
        return [device for device in DEVICES if runs_on(device)]


def runs_on(device: str) -> bool:
    """Return whether this machine has the device and the chosen backend runs on it."""
    try:
        ssm.pick(device)
    except ValueError:
        return False
    return device == "cpu" or torch.cuda.is_available()


def seconds(name: str, device: str, inputs: list) -> float:
    """Return the time of one scan, forward and backward."""
    with ssm.use_backend(name):
        start = time.perf_counter()
        out = ssm.selective_scan(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def in_turn(contenders: list[tuple[str, str]], shape: dict, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of each backend on its device, over rounds in which all take turns."""
    inputs = {device: scan_inputs(**shape, device=device) for _, device in contenders}
    times = {contender: [] for contender in contenders}
    for turn in range(rounds + 1):  # the first one warms up
        for name, device in contenders:
            found = seconds(name, device, inputs[device])
            if turn:
                times[name, device].append(found)
    return {contender: median(found) for contender, found in times.items()}


def exactness(name: str, device: str) -> tuple[str, bool]:
    """Run a backend and return its largest error, or how it fails, as text, and whether it works."""
    try:
        return f"largest error {largest_error(name, device):.1e}", True
    except Exception as error:  # whatever a broken installation raises is what the report is for
        mend = f"; {cuda.INSTALL}" if name == "cuda" else ""
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())}{mend}", False


def report(shape: dict, rounds: int) -> list[str]:
    """Make a line for each backend and device: its error and time, or why it doesn't run."""
    found = {}
    for name in BACKENDS[1:]:
        reason = ssm.unavailable(name)
        if reason:
            found[name, ""] = (f"not available: {reason}", False)
        else:
            found |= {(name, device): exactness(name, device) for device in devices(name)}
    times = in_turn([contender for contender, (_, works) in found.items() if works], shape, rounds)
    kept, lines = keep(times), []
    for (name, device), (text, works) in found.items():
        took = f", {1000 * times[name, device]:.2f} ms" if works else ""
        lines.append(f"  {name:<10} {device:<5} {text}{took}")
    if kept:
        lines.append(f"kept in {kept}: on this GPU, with these versions, auto takes the fastest")
    return lines


def keep(times: dict[tuple[str, str], float]) -> Path | None:
    """Save the times of the backends for GPUs, by which `auto` chooses; return the file, None without times."""
    on_gpu = {name: 1000 * took for (name, device), took in times.items() if device == "cuda" and name != "reference"}
    return speed.remember(on_gpu) if on_gpu else None


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of python -m ssm."""
    parser = argparse.ArgumentParser(
        "python -m ssm", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    batch = 128 if torch.cuda.is_available() else 8
    parser.add_argument(
        "--batch", type=positive, default=batch, metavar="B", help="sequences of the scan that is timed"
    )
    parser.add_argument("--length", type=positive, default=197, metavar="L", help="tokens of each")
    parser.add_argument("--channels", type=positive, default=384, metavar="D", help="channels of each token")
    parser.add_argument("--states", type=positive, default=16, metavar="N", help="states of each channel")
    parser.add_argument("--rounds", type=positive, default=5, metavar="R", help="rounds in which all take their turn")
    return parser


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return value


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    shape = {"B": args.batch, "L": args.length, "D": args.channels, "N": args.states}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {gpu}")
    print(f"C++ compiler: {shutil.which('c++') or 'none'}, ninja: {shutil.which('ninja') or 'none on the path'}")
    print(f"scan, forward and backward: largest error against the reference in fp64 at {_text(SMALL)};")
    print(f"time in fp32 at {_text(shape)}, each backend in turn, median of {args.rounds}:")
    for line in report(shape, args.rounds):
        print(line)
    for device in filter(runs_on, DEVICES):
        name, reason = ssm.pick(device)
        print(f"auto on {device}: {name} ({reason})")
    print("cpu needs g++ and ninja; triton, for GPUs, PyTorch's CUDA wheel and gcc; cuda vim_requirements_cuda.txt, or")
    print("VIM_HUB_KERNELS=1 with Hugging Face's kernels (downloads). docs/gpu.md says more about GPUs.")


def _text(shape: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())


if __name__ == "__main__":
    main()
