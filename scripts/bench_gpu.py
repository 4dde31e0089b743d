"""Time the scan alone, or whole training steps, on a GPU: every backend that runs there, fp32 and bf16.

    python scripts/bench_gpu.py scan --json output/scan.json
    python scripts/bench_gpu.py train --json output/train.json

`scan` runs forward and backward of one direction. `train` runs forward, loss, backward and AdamW on random images:
every backend without fusion in both precisions, the paper's strategies in bf16, and, for the first model only, the
compiled model and one step of the reference, which is slow. Each row is the median after two uncounted steps; peak
memory is torch.cuda's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from timm.models import create_model

sys.path.insert(0, str(Path(__file__).parents[1]))
import fusion
import models_mamba  # noqa: F401, registers the models
import ssm
from ssm.__main__ import scan_inputs
from training.runtime.machine import device_name, versions

# Strategy, layer, tokens fused in each layer: about the same total over 24 layers, as in scripts/tables.sh.
STRATEGIES = {
    "all": ("all", None, 7),
    "interleaved": ("interleaved", None, 14),
    "lower": ("lower", 18, 9),
    "upper": ("upper", 6, 9),
}
WARM_UP = 2


def backends(device: str) -> list[str]:
    """Return the backends that run on the device, the reference last."""

    def runs(name: str) -> bool:
        if ssm.unavailable(name):
            return False
        try:
            with ssm.use_backend(name):
                ssm.pick(device)
        except ValueError:
            return False
        return True

    return [name for name in (*ssm.BACKENDS[2:], "reference") if runs(name)]


def measure(build: Callable[[], Callable[[], None]], device: str, runs: int, warm_up: int = WARM_UP) -> dict:
    """Return the median milliseconds of build()'s steps and, on a GPU, the peak memory in MiB; if it fails, say why."""
    on_gpu, times = device == "cuda", []
    try:
        step = build()
        for run in range(warm_up + runs):
            if on_gpu and run == warm_up:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # one failed row must not lose the rest
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    row = {"ms": round(median(times[warm_up:]), 3)}
    return row | ({"peak_mib": round(torch.cuda.max_memory_allocated() / 2**20)} if on_gpu else {})


def scan_step(backend: str, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Callable[[], None]:
    inputs = scan_inputs(*shape, device=device)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    inputs = [a if at in (2, 5, 7) else b for at, (a, b) in enumerate(zip(inputs, low, strict=True))]  # A, D, bias fp32

    def step() -> None:
        with ssm.use_backend(backend):
            out = ssm.selective_scan(*inputs)
            torch.autograd.grad(out, inputs, torch.ones_like(out))

    return step


def bench_scan(args: argparse.Namespace) -> dict[str, dict]:
    rows = {}
    for B, L, D, N in args.shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for backend in backends(args.device):
                name = f"B {B}, L {L}, D {D}, N {N}, {str(dtype)[6:]}, {backend}"
                runs = 1 if backend == "reference" else args.runs
                build = partial(scan_step, backend, (B, L, D, N), args.device, dtype)
                rows[name] = report(name, measure(build, args.device, runs))
    return rows


def train_step(
    args: argparse.Namespace, model_name: str, fuse: str, backend: str, bf16: bool, compiled: bool
) -> Callable:
    torch.manual_seed(0)
    model = create_model(model_name, num_classes=1000).to(args.device)
    if fuse != "no":
        strategy, layer, tokens = STRATEGIES[fuse]
        fusion.inject(model, fusion.plan(strategy, len(model.layers), layer, tokens=tokens))
    run = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(args.batch_size, 3, *model.patch_embed.img_size, device=args.device)
    labels = torch.randint(1000, (args.batch_size,), device=args.device)

    def step() -> None:
        optimizer.zero_grad()
        with ssm.use_backend(backend), torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    return step


def bench_train(args: argparse.Namespace) -> dict[str, dict]:
    rows = {}
    available = backends(args.device)
    fastest = available[0]
    for model in args.models:
        contenders = [("no", name, bf16, False) for bf16 in (False, True) for name in available if name != "reference"]
        contenders += [(fuse, fastest, True, False) for fuse in args.fuse]
        if model == args.models[0]:
            contenders += [("no", fastest, True, True)] if args.compile else []
            contenders += [("no", "reference", True, False)]
        for fuse, backend, bf16, compiled in contenders:
            name = f"{model}, {fuse}, {'bf16' if bf16 else 'fp32'}, {backend}{', compiled' if compiled else ''}"
            turns = {"runs": 1, "warm_up": 0} if backend == "reference" else {"runs": args.runs}
            build = partial(train_step, args, model, fuse, backend, bf16, compiled)
            row = measure(build, args.device, **turns)
            if "ms" in row:
                row["images_per_second"] = round(1000 * args.batch_size / row["ms"], 1)
            rows[name] = report(name, row)
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return rows


def report(name: str, row: dict) -> dict:
    print(f"| {name} | " + ", ".join(f"{key} {value}" for key, value in row.items()) + " |", flush=True)
    return row


def shape(text: str) -> tuple[int, ...]:
    """Parse sizes written as BxLxDxN, for argparse."""
    numbers = text.split("x")
    if len(numbers) != 4 or not all(number.isdigit() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"must be four sizes as in 128x197x384x16, not {text}")
    return tuple(map(int, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scan", "train"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the program, no more")
    parser.add_argument("--runs", type=int, default=5, help="counted steps; one of the reference (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--shapes",
        type=shape,
        nargs="+",
        default=[(128, 197, 384, 16), (128, 197, 768, 16), (8, 197, 384, 16)],
        metavar="BxLxDxN",
        help="scan: sizes (default: Vim-Ti's and Vim-S's)",
    )
    parser.add_argument(
        "--models", nargs="+", default=["vim_tiny_patch16_224", "vim_small_patch16_224"], help="train: models"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="train: images of a step (default: 128)")
    parser.add_argument("--fuse", nargs="*", default=list(STRATEGIES), choices=STRATEGIES, help="train: strategies")
    parser.add_argument("--compile", action="store_true", help="train: also compiled, which takes minutes")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU; --device cpu tries the program without one")
    device = device_name(torch.device(args.device))
    print(f"{device}, PyTorch {torch.__version__}; backends: {', '.join(backends(args.device))}")
    rows = {"scan": bench_scan, "train": bench_train}[args.what](args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"device": device, "versions": versions(), args.what: rows}, indent=1) + "\n")
    failed = [name for name, row in rows.items() if "failed" in row]
    if failed:
        sys.exit(f"bench_gpu: {len(failed)} of {len(rows)} rows failed, the first one: {failed[0]}")


if __name__ == "__main__":
    main()
