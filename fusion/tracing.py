"""Record which patches each token is made of while a model fuses."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusion.injection import TokenFusion
from fusion.matching import positions_without
from fusion.merging import Matching


class Trace:
    """Hold a record of the last forward pass inside `trace`.

    Attributes:
        before: The model's tokens after each layer's mixer, before its fusion, for the layers that ran.
        after: The model's tokens after each layer's fusion, with `source`.
        matchings: The Matching of each layer, None if it fuses nothing.
    """

    def __init__(self) -> None:
        self.before: list[NamedTuple] = []
        self.after: list[NamedTuple] = []
        self.matchings: list[Matching | None] = []
        self._matching: Matching | None = None

    def groups(self, layer: int) -> Tensor:
        """Return for every original patch, row by row, the position of its token after a layer: [B, M].

        A pruned patch counts as part of the token that it was most similar to.
        """
        return self.after[layer].source

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the sequence lengths before layer 0 and after each layer."""
        return tuple(tokens.hidden.shape[1] for tokens in (self.before[0], *self.after))

    def _start(self, _: nn.Module, inputs: tuple[NamedTuple]) -> tuple[NamedTuple]:
        """Forget the previous pass, and add to the tokens where each patch is."""
        for recorded in (self.before, self.after, self.matchings):
            recorded.clear()
        (tokens,) = inputs
        if tokens.source is None:
            tokens = tokens._replace(source=positions_without(tokens.cls_index, tokens.hidden.shape[1]))
        return (tokens,)

    def _note_matching(self, matching: Matching) -> None:
        self._matching = matching

    def _note_layer(self, _: nn.Module, inputs: tuple[NamedTuple], after: NamedTuple) -> None:
        self.before.append(inputs[0])
        self.after.append(after)
        self.matchings.append(self._matching)
        self._matching = None


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record a model's forward passes inside this context; outside of it nothing is recorded, and nothing costs time.

    With gradient checkpointing the backward pass runs layers again, so call it outside of the context.

    Args:
        model: as for `inject`; its layers are called one after the other, with the tokens as their only argument.

    Raises:
        RuntimeError: The model is being traced already.
    """
    record = Trace()
    fusing = [block.fusion for block in model.layers if isinstance(block.fusion, TokenFusion)]
    if any(layer.observe for layer in fusing):
        raise RuntimeError("this model is traced already")
    handles = [model.layers[0].register_forward_pre_hook(record._start)]
    handles += [block.fusion.register_forward_hook(record._note_layer) for block in model.layers]
    for layer in fusing:
        layer.observe = record._note_matching
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
        for layer in fusing:
            layer.observe = None


def similarity(tokens: NamedTuple) -> Tensor:
    """Return the cosines between the tokens of each image, by `hidden` as in the paper: [B, L, L]."""
    unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)
    return unit @ unit.mT


def redundancy(tokens: NamedTuple) -> Tensor:
    """Return how alike an image's patches are: the mean of each one's cosine to the patch most similar to it, [B].

    NaN if there is only one patch.
    """
    patches = positions_without(tokens.cls_index, tokens.hidden.shape[1])
    if patches.shape[1] < 2:
        return tokens.hidden.new_full((len(patches),), math.nan)
    hidden = tokens.hidden.gather(1, patches.unsqueeze(-1).expand(-1, -1, tokens.hidden.shape[2]))
    alike = similarity(tokens._replace(hidden=hidden))
    return alike.diagonal_scatter(torch.full(alike.shape[:2], -1.0), dim1=1, dim2=2).amax(dim=2).mean(dim=1)
