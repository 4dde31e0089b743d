"""Count the kernels that a layer launches on a GPU, without one: tensors have shapes and no values.

    python scripts/count_launches.py

A kernel in Triton counts as one, and so does an operator of PyTorch, though some are several on a GPU, such as a sort;
PyTorch's norm, which can be one kernel on a GPU, counts as six. Views, new tensors without values, and copies from and
to fp64, which only a CPU makes, count none. Neither the model's size nor the number of fused tokens changes a count.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[1]))
import fusion
import models_mamba
from fusion.triton import launch as fusing
from fusion.triton import operators as fusing_operators  # noqa: F401, registers them
from ssm.triton import launch as scanning
from ssm.triton import operators as scanning_operators  # noqa: F401, registers them

MODEL, TOKENS = "vim_tiny_patch16_224", 8  # and how many of its tokens fuse
LAUNCHERS = {"vim_fusion": fusing, "vim_triton": scanning}
FREE = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "_to_copy",
    "promote_types",
)
# Kinds of layers, and the namespace of the operations by which they fuse.
KINDS = {"plain": None, "fused by the definition": None, "fused in Triton": "vim_fusion"}


class Launches(TorchDispatchMode):
    """Count what is launched inside a `with` block, by name, in `counts`; kernels in Triton don't run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace in LAUNCHERS:
            with self, patch.object(JITFunction, "run", self._count_kernel()):
                return getattr(LAUNCHERS[operator.namespace], operator._opname)(*args)
        found = operator(*args, **(kwargs or {}))
        if operator.namespace == "aten" and not operator.is_view and operator._opname not in FREE:
            self.counts[operator._opname] += 1
        if operator._opname == "_to_copy" and torch.float64 not in (args[0].dtype, found.dtype):
            self.counts[operator._opname] += 1
        return found

    def _count_kernel(self):
        def run(kernel, *args, **options) -> None:
            self.counts[kernel.fn.__name__] += 1

        return run


def count(kind: str) -> tuple[Counter, Counter]:
    """Return what the model's second layer launches forward and backward, in fp32, by name."""
    namespace, model = KINDS[kind], timm.create_model(MODEL)
    fusion.inject(model, [0, 0 if kind == "plain" else TOKENS, *[0] * (len(model.layers) - 2)])
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch("ssm.backends._picked", lambda device_type: "triton"),
        patch("fusion.backends._picked", lambda device_type: namespace),
    ):
        B, L, D = 2, *model.pos_embed.shape[1:]
        hidden, residual = (torch.randn(B, L, D, requires_grad=True) for _ in range(2))
        cls_index = torch.zeros(B, model.num_prefix_tokens, dtype=torch.long)
        entering = models_mamba.Tokens(hidden, residual, cls_index, torch.ones(B, L), None)
        with Launches() as forward:
            left = model.layers[1](entering)
        upstream = [torch.randn_like(left.hidden), torch.randn_like(left.residual)]
        leaves = [hidden, residual, *model.layers[1].parameters()]
        with Launches() as backward:
            torch.autograd.grad((left.hidden, left.residual), leaves, upstream)
    return forward.counts, backward.counts


def table() -> str:
    lines = ["| layer | forward | backward |", "| --- | --- | --- |"]
    for kind in KINDS:
        forward, backward = (counts.total() for counts in count(kind))
        lines.append(f"| {kind} | {forward} | {backward} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table())


if __name__ == "__main__":
    main()
