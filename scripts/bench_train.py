"""Time whole training steps: with and without fusion, by the reference and the fastest scan, and the GEMMs alone.

    python scripts/bench_train.py --json results/bench_train.json
    python scripts/bench_train.py --model vim_nano_patch4_32 --input-size 28 --fuse all:3 lower:6:6 upper:6:6

A step is forward, loss, backward and AdamW on random images. All contenders run in one process and in turn; the table
shows medians. "Cutting" drops the last tokens of each layer instead of fusing as many: what fusion would take if
matching and merging were free. The GEMMs are the model's matrix products, forward and backward, run alone at the same
shapes.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import torch
import torch.nn.functional as F
from timm.models import create_model, list_models
from torch import Tensor, nn

import fusion
import models_mamba
import ssm
from fusion.words import GRAMMAR, named_plans
from training.runtime.machine import device_name, versions
from training.runtime.memory import kept_mib
from training.settings.failure import check_known
from training.settings.kinds import count, positive


class Cut(nn.Module):
    """Drop the last r tokens of every image: [B, L, D] -> [B, L - r, D]. Class tokens there move to the new end."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, tokens: models_mamba.Tokens) -> models_mamba.Tokens:
        left = tokens.hidden.shape[1] - self.r
        hidden, residual = (part[:, :left].contiguous() for part in (tokens.hidden, tokens.residual))
        return tokens._replace(hidden=hidden, residual=residual, cls_index=tokens.cls_index.clamp(max=left - 1))


class Contender:
    """Train the model in one way, and hold the times of its steps."""

    def __init__(
        self,
        args: argparse.Namespace,
        plan: tuple[int, ...] | None = None,
        backend: str = "auto",
        recompute: bool = False,
        checkpointing: bool = False,
        compiled: bool = False,
        depth: int | None = None,
        cut: bool = False,
    ) -> None:
        torch.manual_seed(0)
        size = {"img_size": args.input_size} if args.input_size else {}
        layers = {"depth": depth} if depth else {}
        self.model = create_model(args.model, num_classes=100, **size, **layers)
        self.plan = plan or (0,) * len(self.model.layers)
        fusion.inject(self.model, self.plan)
        for block, r in zip(self.model.layers, self.plan, strict=True):
            block.fusion = Cut(r) if cut and r else block.fusion
        self.model.set_scan_recompute(recompute)
        self.model.set_grad_checkpointing(checkpointing)
        self.run = torch.compile(self.model, fullgraph=True) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)  # as in main.py
        self.backend, self.seconds = backend, []
        size = self.model.patch_embed.img_size
        self.images, self.labels = torch.randn(args.batch_size, 3, *size), torch.randint(100, (args.batch_size,))

    def loss(self) -> Tensor:
        with ssm.use_backend(self.backend):
            return F.cross_entropy(self.run(self.images), self.labels)

    def step(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)


def gemms(contender: Contender) -> list[tuple[int, int, int]]:
    """Return (rows, in, out) of every matrix product of a forward pass, the patch embedding included."""
    found = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        weight = layer.weight.flatten(1)
        found.append((out.numel() // weight.shape[0], weight.shape[1], weight.shape[0]))

    layers = [m for m in contender.model.modules() if isinstance(m, nn.Linear)] + [contender.model.patch_embed.proj]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        contender.loss()
    for hook in hooks:
        hook.remove()
    # dt_proj's weight is multiplied outside of its layer's forward
    for block in contender.model.layers:
        length = contender.model.pos_embed.shape[1] * contender.images.shape[0]
        for direction in (block.mixer.forward_ssm, block.mixer.backward_ssm):
            found.append((length, direction.dt_rank, direction.dt_proj.out_features))
    return found


def gemm_seconds(shapes: list[tuple[int, int, int]]) -> float:
    """Time the products alone: x W', and for the gradients g W and g' x."""
    operands = [(torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)) for n, i, o in shapes]
    start = time.perf_counter()
    for x, weight, gradient in operands:
        torch.mm(x, weight.t())
        torch.mm(gradient, weight)
        torch.mm(gradient.t(), x)
    return time.perf_counter() - start


def build_contenders(args: argparse.Namespace) -> dict[str, Contender]:
    """Build all that is measured, by name; raise ValueError if a plan is not possible."""
    plain = Contender(args)
    plans, misfits = [], []
    for word in args.fuse:
        found, unfit = named_plans(word, plain.model)
        plans, misfits = plans + found, misfits + unfit
    if misfits:
        raise ValueError(misfits[0])
    contenders = {"reference scan": Contender(args, backend="reference")} if args.reference_runs else {}
    contenders |= {
        "no fusion": plain,
        "no fusion, recomputing the scan": Contender(args, recompute=True),
        "no fusion, checkpointing layers": Contender(args, checkpointing=True),
    }
    if args.compile:
        contenders["no fusion, compiled"] = Contender(args, compiled=True)
    contenders |= {f"no fusion, {depth} layers": Contender(args, depth=depth) for depth in args.depths}
    for name, _, plan in plans:
        contenders |= {f"fusing {name}": Contender(args, plan), f"cutting {name}": Contender(args, plan, cut=True)}
    return contenders


def model_name(text: str) -> str:
    """Take a model's name for argparse; raise ArgumentTypeError with the nearest names if there is no such model."""
    try:
        check_known("model", text, list_models(module="models_mamba"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_name, default="vim_tiny_patch16_224")
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--input-size", type=positive, help="pixels; the model's own if not given")
    parser.add_argument(
        "--fuse",
        nargs="+",
        default=["all:7"],
        metavar="PLAN",
        help=f"what fuses: {GRAMMAR} (default: all:7)",
    )
    parser.add_argument("--runs", type=positive, default=7, help="counted steps of every contender (default: 7)")
    parser.add_argument(
        "--reference-runs",
        type=count,
        default=2,
        help="counted steps of the reference; 0 leaves it out (default: 2)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also the compiled model, which takes minutes to compile"
    )
    parser.add_argument(
        "--depths", nargs="+", type=positive, default=[], metavar="N", help="also models of so many layers, no fusion"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    try:
        contenders = build_contenders(args)
    except ValueError as error:
        parser.error(f"--fuse {error}")
    plain = contenders["no fusion"]
    device = device_name(torch.device("cpu"))
    scan = ssm.pick("cpu").name
    print(f"{args.model}, batch {args.batch_size}, fp32, {scan} scan, {device}, PyTorch {torch.__version__}")

    shapes, products = gemms(plain), []
    for run in range(args.runs + 1):  # the first warms up
        for name, contender in contenders.items():
            if name != "reference scan" or run <= args.reference_runs:
                contender.step()
        products.append(gemm_seconds(shapes))
    rows = {
        name: {"ms": 1000 * median(c.seconds[1:]), "images_per_second": args.batch_size / median(c.seconds[1:])}
        for name, c in contenders.items()
    }
    for name, contender in contenders.items():
        rows[name]["kept_mib"] = kept_mib(contender.model, contender.loss)
        rows[name]["mean_tokens"] = mean(fusion.token_counts(contender.plan, plain.model.pos_embed.shape[1])[:-1])
    gemm_ms = 1000 * median(products[1:])
    gigaflops = sum(6 * n * i * o for n, i, o in shapes) / gemm_ms / 1e6

    print("\n| | ms a step | x no fusion | x tokens | images/s | kept MiB |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        times, tokens = (row[column] / rows["no fusion"][column] for column in ("ms", "mean_tokens"))
        print(
            f"| {name} | {row['ms']:.0f} | {times:.2f} | {tokens:.2f} | {row['images_per_second']:.1f} "
            f"| {row['kept_mib']:.0f} |"
        )
    print(
        f"\nGEMMs alone: {gemm_ms:.0f} ms ({gigaflops:.0f} GFLOP/s); a step without fusion takes "
        f"{rows['no fusion']['ms'] / gemm_ms:.2f} times that."
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "model": args.model,
            "batch_size": args.batch_size,
            "device": device,
            "backend": scan,
            "versions": versions(),
        }
        figures |= {"steps": rows, "gemm_ms": gemm_ms, "gemm_gflops": gigaflops}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
