"""Put fusion into a model, and take it out again."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fusion.matching import match


class TokenFusion(nn.Module):
    """Fuse r tokens of every image, at the end of a layer (Famba-V, arXiv 2409.09808, section 3).

    Takes and returns the model's tokens: a named tuple with hidden and residual [B, L, D], cls_index [B, K], size
    [B, L] and source [B, M] or None. Hidden decides; hidden and residual then fuse alike, by plain means.

    There is nothing to learn or to save in it, so a checkpoint loads with or without fusion.
    """

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, tokens: NamedTuple) -> NamedTuple:
        matching = match(tokens.hidden, self.r, tokens.cls_index)
        return tokens._replace(
            hidden=matching.merge(tokens.hidden),
            residual=matching.merge(tokens.residual),
            cls_index=matching.cls_index,
            size=matching.group_sum(tokens.size),
            source=None if tokens.source is None else matching.index.gather(1, tokens.source),
        )

    def extra_repr(self) -> str:
        return f"r={self.r}"


def inject(model: nn.Module, plan: Sequence[int]) -> None:
    """Make a model fuse tokens by a plan, in place of what it may have fused before.

    The model has `patch_embed.num_patches` and `layers`, each of which passes its tokens through its `fusion` at its
    end. Where the plan says 0 that becomes an identity again: a plan of zeros takes fusion out.

    Args:
        plan: tokens to fuse after each layer.

    Raises:
        ValueError: the plan does not fit the model: too long or short, negative, or more tokens in one layer than
            half of those there. The model is then left as it was.
    """
    _check(plan, len(model.layers), model.patch_embed.num_patches)
    for block, r in zip(model.layers, plan, strict=True):
        block.fusion = TokenFusion(r) if r > 0 else nn.Identity()


def _check(plan: Sequence[int], depth: int, patches: int) -> None:
    if len(plan) != depth:
        raise ValueError(f"the fusion plan has {len(plan)} entries, the model {depth} layers")
    for layer, r in enumerate(plan):
        if not isinstance(r, int) or r < 0:
            raise ValueError(f"the fusion plan must hold ints of at least 0, not {r!r} (layer {layer})")
        if r > patches // 2:
            raise ValueError(f"layer {layer} has {patches} patch tokens and can fuse at most {patches // 2}, not {r}")
        patches -= r
