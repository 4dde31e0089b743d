"""Put fusion into a model, and take it out again."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from fusion.matching import match
from fusion.merging import Matching
from fusion.method import CHOICES, PARTS, Method


@register_notrace_module  # torch.fx takes it as one operation
class TokenFusion(nn.Module):
    """Fuse r tokens of every image, at the end of a layer (Famba-V, arXiv 2409.09808, section 3).

    Takes and returns the model's tokens: a named tuple with hidden and residual [B, L, D], cls_index [B, K], size
    [B, L] and source [B, M] or None. One matching decides for hidden and residual alike.

    It has no parameters and no state, so a checkpoint loads with or without fusion.

    Attributes:
        observe: Function that is called with each Matching, or None; `trace` sets it.
    """

    def __init__(self, r: int, method: Method = Method()) -> None:
        super().__init__()
        self.r, self.method = r, method
        self.observe: Callable[[Matching], None] | None = None

    def __getstate__(self) -> dict:
        """Leave out who looks on: a copy is not traced."""
        return self.__dict__ | {"observe": None}

    def forward(self, tokens: NamedTuple, parts: Mapping[str, Tensor] | None = None) -> NamedTuple:
        """Fuse; `parts` are those of the layer's mixer, [B, L, ...], that the method names, if it names any."""
        self._check(tokens)
        metric, score = self._metric(tokens, parts), self._score(parts)
        matching = match(metric, self.r, tokens.cls_index, self.method, score)
        if self.observe:
            self.observe(matching)
        hidden, residual, size = self._reduce(matching, tokens)
        return tokens._replace(
            hidden=hidden,
            residual=residual,
            cls_index=matching.cls_index,
            size=size,
            source=None if tokens.source is None else matching.index.gather(1, tokens.source),
        )

    def _check(self, tokens: NamedTuple) -> None:
        """Raise ValueError if there are too few tokens to fuse as many as planned."""
        patches = tokens.hidden.shape[1] - tokens.cls_index.shape[1]
        if self.r > patches // 2:
            raise ValueError(_too_many("this layer", patches, self.r) + ": inject a plan for images of this size")

    def _metric(self, tokens: NamedTuple, parts: Mapping[str, Tensor] | None) -> Tensor:
        if self.method.metric in PARTS:
            return parts[self.method.metric]
        if self.method.metric == "input":
            return tokens.residual + tokens.hidden
        return getattr(tokens, self.method.metric)

    def _score(self, parts: Mapping[str, Tensor] | None) -> Tensor | None:
        """Return how much each token is needed, [B, L], None if its place decides."""
        if self.method.score == "place":
            return None
        part = parts[self.method.score]
        part = part.clamp(min=0) if self.method.score == "scan" else part
        return part.mean(dim=-1, dtype=torch.promote_types(part.dtype, torch.float32))

    def _reduce(self, matching: Matching, tokens: NamedTuple) -> tuple[Tensor, Tensor, Tensor]:
        parts = tokens.hidden, tokens.residual, tokens.size
        if self.method.reduce == "prune":
            return tuple(matching.prune(part) for part in parts)
        return matching.merge_both(*parts, by_size=self.method.average == "size")

    def extra_repr(self) -> str:
        changed = {name: choice for name, choice in vars(self.method).items() if choice != CHOICES[name][0]}
        return ", ".join(f"{name}={choice}" for name, choice in {"r": self.r, **changed}.items())


def inject(model: nn.Module, plan: Sequence[int], method: Method = Method()) -> None:
    """Make a model fuse tokens by a plan, replacing any plan injected before.

    The model has `patch_embed.num_patches` and `layers`; each layer ends by passing its tokens through its `fusion`,
    and, if its `wanted` names parts of its mixer, a mapping with these as the second argument. If the plan says 0 for a
    layer, its `fusion` becomes an identity: a plan of zeros takes fusion out.

    Args:
        plan: number of tokens to fuse after each layer.
        method: how they fuse.

    Raises:
        ValueError: the plan doesn't fit the model: its length isn't the number of layers, a number is negative, or a
            layer would fuse more than half of its patch tokens. The model is then left unchanged.
    """
    check_plan(plan, len(model.layers), model.patch_embed.num_patches)
    for block, r in zip(model.layers, plan, strict=True):
        block.fusion = TokenFusion(r, method) if r > 0 else nn.Identity()
        block.wanted = method.parts if r > 0 else ()


def injected_plan(model: nn.Module) -> tuple[int, ...]:
    """Return the plan that a model follows, zeros if it fuses nothing."""
    return tuple(block.fusion.r if isinstance(block.fusion, TokenFusion) else 0 for block in model.layers)


def injected_method(model: nn.Module) -> Method:
    """Return the method that a model follows, the default one if it fuses nothing."""
    return next((block.fusion.method for block in model.layers if isinstance(block.fusion, TokenFusion)), Method())


def check_plan(plan: Sequence[int], depth: int, patches: int) -> None:
    """Raise ValueError if the plan doesn't fit a model with `depth` layers and `patches` patches."""
    if len(plan) != depth:
        raise ValueError(f"the fusion plan has length {len(plan)}, the model depth {depth}")
    for layer, r in enumerate(plan):
        if not isinstance(r, int) or r < 0:
            raise ValueError(f"the fusion plan must hold ints of at least 0, not {r!r} (layer {layer})")
        if r > patches // 2:
            raise ValueError(_too_many(f"layer {layer}", patches, r))
        patches -= r


def _too_many(layer: str, patches: int, r: int) -> str:
    has = f"{patches} patch token{'' if patches == 1 else 's'}"
    return f"{layer} has {has} and can fuse at most {patches // 2}, not {r}"
