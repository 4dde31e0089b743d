"""Run a trained model under any plan of fusion, and measure how far each moves it, for searches."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fusion
from fusion.search import Plan
from models_mamba import VisionMamba
from training.records.findings import Findings
from training.runtime.progress import Progress
from training.runtime.randomness import seed_all


class Fused:
    """Run a model under any plan.

    Args:
        model: A trained model on its device.
        method: How its tokens fuse.
    """

    def __init__(self, model: VisionMamba, method: fusion.Method) -> None:
        self.model, self.method = model, method
        self.depth, self.patches = len(model.layers), model.patch_embed.num_patches
        self.none = (0,) * self.depth
        self.costs = {}

    def cost(self, plan: Plan) -> float:
        """Return the share of the multiply-adds that a plan leaves."""
        if plan not in self.costs:
            self.costs[plan] = fusion.flops(self.model, plan, self.method) / fusion.flops(self.model, self.none)
        return self.costs[plan]

    @torch.inference_mode()
    def logits(self, plan: Plan, batches: list[Tensor]) -> Tensor:
        """Return the log-probabilities of all images under a plan, on the CPU: [images, classes]."""
        fusion.inject(self.model, plan, self.method)
        seed_all(0)  # random matching is the same every time
        device = next(self.model.parameters()).device
        logits = torch.cat([self.model(images.to(device)).double().cpu() for images in batches])
        return F.log_softmax(logits, dim=1)

    def strategies(self, share: float) -> Iterator[tuple[str, Plan]]:
        """Yield every strategy that reaches the share, lower and upper with each layer K, by its word."""
        layers = {"all": (None,), "interleaved": (None,), "lower": range(1, self.depth), "upper": range(1, self.depth)}
        for strategy, choices in layers.items():
            for layer in choices:
                try:
                    plan = fusion.plan_at_cost(self.model, share, strategy, layer, method=self.method)
                except ValueError:  # fuses too late or in too few layers for this share
                    continue
                yield strategy if layer is None else f"{strategy}:{layer}", plan


class Divergence:
    """Measure how far plans move a model from itself without fusion, on images.

    Args:
        fused: The model.
        batches: The images.
        findings: Keeps what was measured.
        expected: About how many plans will be measured, for the progress.
    """

    def __init__(self, fused: Fused, batches: list[Tensor], findings: Findings, expected: int) -> None:
        self.fused, self.batches, self.findings = fused, batches, findings
        self.unfused = fused.logits(fused.none, batches)
        self.known = {tuple(row["plan"]): row["divergence"] for row in findings.rows}
        self.steps, self.asked = iter(Progress(range(expected), "plans")), set()

    def __call__(self, plan: Plan) -> float:
        """Return the mean KL divergence, in nats, of the probabilities without fusion from those under a plan."""
        if plan not in self.asked:
            self.asked.add(plan)
            next(self.steps, None)
        if plan not in self.known:
            self.known[plan] = kl(self.unfused, self.fused.logits(plan, self.batches))
            self.findings.rows.append({"plan": list(plan), "divergence": self.known[plan]})
            self.findings.write()
        return self.known[plan]


def kl(unfused: Tensor, fused: Tensor) -> float:
    """Return the mean KL divergence of log-probabilities [images, classes], in nats."""
    return F.kl_div(fused, unfused, reduction="batchmean", log_target=True).item()
