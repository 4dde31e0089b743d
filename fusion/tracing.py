"""Look on while a model fuses: what went into each layer's tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusion.injection import TokenFusion
from fusion.matching import Matching, positions_without


class Trace:
    """What the last forward pass inside `trace` did.

    Attributes:
        matchings: For each layer its Matching, None where it fuses nothing.
        before: For each layer the model's tokens as its mixer left them.
        after: For each layer the model's tokens after its fusion, with `source`.
    """

    def __init__(self, depth: int) -> None:
        self.matchings: list[Matching | None] = [None] * depth
        self.before: list[NamedTuple] = []
        self.after: list[NamedTuple] = []

    def groups(self, layer: int) -> Tensor:
        """For every original patch, row by row, the position of the token that holds it after a layer: [B, M]."""
        return self.after[layer].source

    @property
    def tokens(self) -> tuple[int, ...]:
        """Sequence lengths, before layer 0 and after each."""
        return tuple(tokens.hidden.shape[1] for tokens in (self.before[0], *self.after))


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record the forward passes of a model inside this context; outside of it nothing is kept and nothing costs.

    Args:
        model: as for `inject`; its layers are called one after the other with the tokens alone.
    """
    record = Trace(len(model.layers))
    fusions = [(i, block.fusion) for i, block in enumerate(model.layers)]
    handles = [model.layers[0].register_forward_pre_hook(lambda _, inputs: _start(record, *inputs))]
    for i, layer in fusions:
        handles.append(layer.register_forward_hook(lambda _, inputs, output: _note(record, *inputs, output)))
        if isinstance(layer, TokenFusion):
            layer.observe = _noting_matching(record.matchings, i)
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
        for _, layer in fusions:
            if isinstance(layer, TokenFusion):
                layer.observe = None


def _start(record: Trace, tokens: NamedTuple) -> tuple[NamedTuple]:
    """Forget the pass before, and let the tokens carry where each patch is."""
    record.before.clear()
    record.after.clear()
    length = tokens.hidden.shape[1]
    return (tokens._replace(source=positions_without(tokens.cls_index, length)),)


def _note(record: Trace, before: NamedTuple, after: NamedTuple) -> None:
    record.before.append(before)
    record.after.append(after)


def _noting_matching(matchings: list[Matching | None], layer: int) -> Callable[[Matching], None]:
    def note(matching: Matching) -> None:
        matchings[layer] = matching

    return note


def similarity(tokens: NamedTuple) -> Tensor:
    """Cosine between the tokens of each image, by what the paper compares, hidden: [B, L, L]."""
    unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)
    return unit @ unit.mT


def redundancy(tokens: NamedTuple) -> Tensor:
    """How alike an image's patches are: each one's cosine to the patch most like it, averaged over them, [B]."""
    patches = positions_without(tokens.cls_index, tokens.hidden.shape[1])
    hidden = tokens.hidden.gather(1, patches.unsqueeze(-1).expand(-1, -1, tokens.hidden.shape[2]))
    alike = similarity(tokens._replace(hidden=hidden))
    return alike.diagonal_scatter(torch.full(alike.shape[:2], -1.0), dim1=1, dim2=2).amax(dim=2).mean(dim=1)
