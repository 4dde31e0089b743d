"""Put fusion into a model, and take it out again."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fusion.matching import Matching, match
from fusion.method import CHOICES, Method


class TokenFusion(nn.Module):
    """Fuse r tokens of every image, at the end of a layer (Famba-V, arXiv 2409.09808, section 3).

    Takes and returns the model's tokens: a named tuple with hidden and residual [B, L, D], cls_index [B, K], size
    [B, L] and source [B, M] or None. One matching decides for hidden and residual alike.

    There is nothing to learn or to save in it, so a checkpoint loads with or without fusion.

    Attributes:
        observe: Called with each Matching, where something wants to look on.
    """

    def __init__(self, r: int, method: Method = Method()) -> None:
        super().__init__()
        self.r, self.method = r, method
        self.observe: Callable[[Matching], None] | None = None

    def forward(self, tokens: NamedTuple) -> NamedTuple:
        matching = match(self._metric(tokens), self.r, tokens.cls_index, self.method)
        if self.observe:
            self.observe(matching)
        prune = self.method.reduce == "prune"
        return tokens._replace(
            hidden=self._reduce(matching, tokens.hidden, tokens.size),
            residual=self._reduce(matching, tokens.residual, tokens.size),
            cls_index=matching.cls_index,
            size=matching.prune(tokens.size) if prune else matching.group_sum(tokens.size),
            source=None if tokens.source is None else matching.index.gather(1, tokens.source),
        )

    def _metric(self, tokens: NamedTuple) -> Tensor:
        if self.method.metric == "input":
            return tokens.residual + tokens.hidden
        return getattr(tokens, self.method.metric)

    def _reduce(self, matching: Matching, x: Tensor, size: Tensor) -> Tensor:
        if self.method.reduce == "prune":
            return matching.prune(x)
        if self.method.average == "size":
            return matching.merge(x, size)[0]
        return matching.merge(x)

    def extra_repr(self) -> str:
        changed = {name: choice for name, choice in vars(self.method).items() if choice != CHOICES[name][0]}
        return ", ".join(f"{name}={choice}" for name, choice in {"r": self.r, **changed}.items())


def inject(model: nn.Module, plan: Sequence[int], method: Method = Method()) -> None:
    """Make a model fuse tokens by a plan, in place of what it may have fused before.

    The model has `patch_embed.num_patches` and `layers`, each of which passes its tokens through its `fusion` at its
    end. Where the plan says 0 that becomes an identity again: a plan of zeros takes fusion out.

    Args:
        plan: tokens to fuse after each layer.
        method: how they fuse.

    Raises:
        ValueError: the plan does not fit the model: too long or short, negative, or more tokens in one layer than
            half of those there. The model is then left as it was.
    """
    _check(plan, len(model.layers), model.patch_embed.num_patches)
    for block, r in zip(model.layers, plan, strict=True):
        block.fusion = TokenFusion(r, method) if r > 0 else nn.Identity()


def _check(plan: Sequence[int], depth: int, patches: int) -> None:
    if len(plan) != depth:
        raise ValueError(f"the fusion plan has length {len(plan)}, the model depth {depth}")
    for layer, r in enumerate(plan):
        if not isinstance(r, int) or r < 0:
            raise ValueError(f"the fusion plan must hold ints of at least 0, not {r!r} (layer {layer})")
        if r > patches // 2:
            has = f"{patches} patch token{'' if patches == 1 else 's'}"
            raise ValueError(f"layer {layer} has {has} and can fuse at most {patches // 2}, not {r}")
        patches -= r
