"""Compile the Triton kernels for GPUs that need not be here, and predict from the machine code what a step takes.

    python scripts/triton_report.py --json results/triton_kernels.json

docs/gpu.md says how the prediction is made; its tables are this program's. With the cache of compiled kernels empty
(~/.triton/cache) it takes about two minutes.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[1]))
from ssm.triton import launch, offline


class GPU(NamedTuple):
    """Describe a GPU, by its data sheet.

    Attributes:
        capability: Compute capability that kernels are compiled for.
        processors: Number of processors; in a clock, each issues 4 instructions of a warp and computes 16 special
            functions.
        clock: Boost clock in Hz.
        bandwidth: Bandwidth of its memory, in bytes per second.
    """

    name: str
    capability: int
    processors: int
    clock: float
    bandwidth: float


GPUS = (GPU("A100 SXM 80 GB", 80, 108, 1.41e9, 2.039e12), GPU("H200 SXM", 90, 132, 1.98e9, 4.8e12))
MODELS = {"Vim-Ti": 384, "Vim-S": 768}  # inner channels; both have 24 layers, two directions, 197 tokens at 224 pixels
LAYERS, LENGTH, STATES = 24, 197, 16
KERNELS = ("convolution", "scan", "states", "scan, backward", "convolution, backward")
TOKENS = (launch.CONV_TOKENS, launch.FORWARD_TOKENS, launch.BACKWARD_TOKENS, launch.BACKWARD_TOKENS, launch.CONV_TOKENS)


class Case(NamedTuple):
    """Describe one way to call the operations; each compiles different kernels."""

    channels: int = 384
    states: int = STATES
    dtype: str = "bfloat16"
    reverse: bool = False
    add: bool = False
    block: int = 32

    def __str__(self) -> str:
        width = [] if self.block == 32 else [f"{self.block} channels a program"]
        extras = [text for text, is_so in (("reversed", self.reverse), ("adding", self.add)) if is_so]
        return ", ".join([f"D {self.channels}, N {self.states}, {self.dtype}", *width, *extras])


CASES = (
    Case(),
    Case(dtype="float32"),
    Case(reverse=True, add=True),
    Case(channels=376),
    Case(block=8),
    Case(states=8),
)


def call(case: Case, length: int = 37, batch: int = 2) -> None:
    """Call both operations and their gradients, with views like the mixer's."""
    D, N, dtype = case.channels, case.states, getattr(torch, case.dtype)
    x, z = torch.empty(batch, length, 2 * D, dtype=dtype).chunk(2, dim=-1)
    _, B, C = torch.empty(batch, length, D // 32 + 2 * N, dtype=dtype).split((D // 32, N, N), dim=-1)
    u, delta, grad = torch.empty(3, batch, length, D, dtype=dtype)
    scan = (u, delta, torch.empty(D, N), B, C, torch.empty(D), z, torch.empty(D), case.reverse)
    conv = (x, torch.empty(D, 4), torch.empty(D), case.reverse)
    launch.causal_conv1d(*conv)
    launch.selective_scan(*scan, torch.empty_like(u), case.add)
    launch.selective_scan_backward(grad, *scan, *(torch.empty_like(t) for t in (B, C, u)), case.add)
    launch.causal_conv1d_backward(grad, *conv, x, case.add)


def compile_case(case: Case, capability: int) -> dict[str, dict]:
    """Compile a case's kernels and return what each needs, with instructions for one token."""
    choose, launch.block_width = launch.block_width, lambda *counts: case.block
    try:
        with offline.compiling_for(capability) as kernels:
            call(case)
    finally:
        launch.block_width = choose
    found = {}
    for name, kernel, tokens in zip(KERNELS, kernels, TOKENS, strict=True):
        needs = offline.needs(kernel)._asdict()
        found[name] = needs | {key: round(needs[key] / tokens, 1) for key in ("issued", "special")}
    return found


def bytes_moved(batch: int, channels: int) -> dict[str, int]:
    """Return the bytes that each kernel reads and writes for one direction of one layer in bf16, everything once."""
    token = batch * LENGTH * channels * 2  # one tensor of activations
    BC = batch * LENGTH * 2 * STATES * 4
    states = batch * math.ceil(LENGTH / launch.BACKWARD_TOKENS) * STATES * channels * 4
    sums_BC = math.ceil(channels / 32) * BC
    return {
        "convolution": 2 * token,  # x; out
        "scan": 4 * token + BC,  # u, delta, z; out
        "states": 2 * token + BC + states,  # u, delta; states
        "scan, backward": 7 * token + BC + states + 2 * sums_BC,  # and the gradients of u, delta and z; sums read again
        "convolution, backward": 3 * token,  # x, its gradient, the upstream one
    }


def predict(gpu: GPU, kernels: dict[str, dict], channels: int, batch: int = 128) -> dict[str, dict]:
    """Return the milliseconds that each kernel takes at least in a training step, by each thing that limits it."""
    rows = {}
    for name, moved in bytes_moved(batch, channels).items():
        width = launch.CONV_BLOCK if name.startswith("convolution") else 32
        tokens = 2 * LAYERS * LENGTH * batch * math.ceil(channels / width)  # times warps
        clocks = 1000 / gpu.processors / gpu.clock
        rows[name] = {
            "issue": tokens * kernels[name]["issued"] / 4 * clocks,
            "special": tokens * kernels[name]["special"] * 32 / 16 * clocks,
            "memory": 2 * LAYERS * moved / gpu.bandwidth * 1000,
        }
        rows[name]["least"] = max(rows[name].values())
    return rows


def kernel_table(kernels: dict[str, dict[str, dict]]) -> str:
    """Make a line for each kernel and case, with cells for all GPUs; leave out cases like an earlier one."""
    columns = {"registers": "d", "shared": "d", "spilled": "d", "issued": ".0f", "special": ".1f"}
    gpus = " / ".join(f"sm_{capability}" for capability in kernels)
    lines = [
        f"| {gpus} | registers | shared bytes | spills | instructions | special functions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    first = next(iter(kernels.values()))
    for name in KERNELS:
        seen = []
        for case in first:
            rows = [cases[case][name] for cases in kernels.values()]
            if rows not in seen:
                cells = " | ".join(" / ".join(f"{row[key]:{form}}" for row in rows) for key, form in columns.items())
                lines.append(f"| {name}: {case} | {cells} |")
            seen.append(rows)
    return "\n".join(lines)


def prediction_table(predictions: dict[str, dict[str, dict]]) -> str:
    lines = [
        "| GPU, model | kernel | issue slots | special functions | memory | at least |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for title, rows in predictions.items():
        for name, row in rows.items():
            cells = " | ".join(f"{row[key]:.2f}" for key in ("issue", "special", "memory", "least"))
            lines.append(f"| {title} | {name} | {cells} |")
        lines.append(f"| {title} | all | | | | **{sum(row['least'] for row in rows.values()):.1f}** |")
    return "\n".join(lines)


def report() -> dict:
    """Return all needs of kernels and all predictions."""
    kernels = {}
    for gpu in GPUS:
        kernels[str(gpu.capability)] = {}
        for case in CASES:
            print(f"compiling for sm_{gpu.capability}: {case}", file=sys.stderr, flush=True)
            kernels[str(gpu.capability)][str(case)] = compile_case(case, gpu.capability)
    predictions = {
        f"{gpu.name}, {model}": predict(gpu, kernels[str(gpu.capability)][str(Case())], channels)
        for gpu in GPUS
        for model, channels in MODELS.items()
    }
    return {"triton": triton.__version__, "torch": torch.__version__, "kernels": kernels, "predictions": predictions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    found = report()
    print(f"Triton {found['triton']}\n\n{kernel_table(found['kernels'])}\n\n{prediction_table(found['predictions'])}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
