"""Time the scan and the convolution, forward and backward, against other ways to compute them.

    python scripts/bench_scan.py --json results/bench_scan.json

All contenders run in one process and in turn, each after two uncounted runs of its own, so that a slow moment of the
machine meets all of them; the table shows medians, and the 10th and 90th percentile. The contenders' results are
compared first.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import torch
import torch.nn.functional as F
from torch import Tensor

import ssm
from ssm import reference
from ssm.__main__ import scan_inputs
from training.runtime.machine import device_name, versions

SCANS = ((8, 197, 384, 16), (64, 65, 192, 16))


def loop(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Scan in plain PyTorch, one token after the other, split by unbind."""
    return reference._scan(u, delta, B, C, z, A, D, delta_bias, False)


def parallel(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Scan in PyTorch with logarithmic depth (Hillis and Steele): all tokens at once, in log2(L) rounds."""
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    h = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    reach = 1
    while reach < u.shape[1]:
        h = torch.cat((h[:, :reach], torch.addcmul(h[:, reach:], decay[:, reach:], h[:, :-reach])), dim=1)
        decay = torch.cat((decay[:, :reach], decay[:, reach:] * decay[:, :-reach]), dim=1)
        reach *= 2
    y = (h * C.unsqueeze(2)).sum(-1) + D * u
    return y * F.silu(z)


def compiled(*inputs: Tensor) -> Tensor:
    """Scan by the C++ operation."""
    with ssm.use_backend("cpu"):
        return ssm.selective_scan(*inputs)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by PyTorch's own depthwise convolution."""
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[2])).transpose(1, 2)


def compiled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by the C++ operation."""
    with ssm.use_backend("cpu"):
        return ssm.causal_conv1d(x, weight, bias)


def kept_mib(op, inputs: list[Tensor]) -> float:
    """Return the MiB that autograd saves for the backward pass beside the inputs."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = op(*inputs)
    for tensor in inputs:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del out
    return sum(storages.values()) / 2**20


def measure(contenders: dict, inputs: list[Tensor], runs: int) -> list[dict]:
    """Return the median and spread of each contender's forward and backward together, in milliseconds."""
    upstream = torch.randn_like(inputs[0])
    expected = next(iter(contenders.values()))(*inputs)
    for op in contenders.values():
        torch.testing.assert_close(op(*inputs), expected, rtol=1e-3, atol=1e-4)
    times = {name: [] for name in contenders}
    for _ in range(runs):
        for name, op in contenders.items():
            # The uncounted runs absorb the state in which the previous contender left memory and caches.
            for counted in (False, False, True):
                start = time.perf_counter()
                torch.autograd.grad(op(*inputs), inputs, upstream)
                if counted:
                    times[name].append(1000 * (time.perf_counter() - start))
    rows = []
    for name, op in contenders.items():
        found = sorted(times[name])
        pick = {p: found[round(p / 100 * (len(found) - 1))] for p in (10, 50, 90)}
        rows.append({"name": name, "p10": pick[10], "ms": pick[50], "p90": pick[90], "kept_mib": kept_mib(op, inputs)})
    return rows


def print_table(title: str, rows: list[dict], ours: str) -> None:
    fastest = next(row["ms"] for row in rows if row["name"] == ours)
    print(f"\n{title}\n\n| | ms, median | 10 % to 90 % | times ours | kept MiB |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        spread = f"{row['p10']:.1f} to {row['p90']:.1f}"
        print(f"| {row['name']} | {row['ms']:.1f} | {spread} | {row['ms'] / fastest:.1f} | {row['kept_mib']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="counted runs of every contender (default: 9)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    ssm.use_backend("cpu")
    device = device_name(torch.device("cpu"))
    print(f"{device}, PyTorch {torch.__version__}, fp32, forward and backward, {args.runs} runs of each in turn")

    results = {"device": device, "versions": versions(), "runs": args.runs, "scan": {}, "conv": {}}
    for shape in SCANS:
        scans = {"loop over tokens, unbind": loop, "parallel scan in PyTorch": parallel, "C++": compiled}
        rows = measure(scans, scan_inputs(*shape), args.runs)
        print_table(f"Scan, B {shape[0]}, L {shape[1]}, D {shape[2]}, N {shape[3]}", rows, "C++")
        results["scan"][str(shape)] = rows
    for B, L, D, _ in SCANS:
        inputs = [torch.randn(size, requires_grad=True) for size in ((B, L, D), (D, 4), (D,))]
        rows = measure({"F.conv1d(groups=D) and silu": conv1d, "C++": compiled_conv}, inputs, args.runs)
        print_table(f"Convolution and SiLU, B {B}, L {L}, D {D}", rows, "C++")
        results["conv"][str((B, L, D))] = rows
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
