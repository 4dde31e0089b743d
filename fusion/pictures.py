"""Draw what fusion does to an image, with matplotlib, in colours that colour-blind readers can tell apart."""

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from fusion.injection import TokenFusion
from fusion.parts import colour_numbers, groups_of_several, middle, parts
from fusion.tracing import Trace, redundancy, similarity, trace

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")  # Okabe and Ito
# More than seven are used only if that many groups touch one another.
GROUP_COLOURS = (*PALETTE, "#FFFFFF", "#882255", "#44AA99", "#999933", "#661100", "#AA4499", "#888888")
SIMILARITY_COLOURS = "cividis"
POINTS = 72  # per inch
PANEL_INCHES, CELL_INCHES = 2.4, 0.16  # smallest sizes of a picture's panel and of a patch in it
GROUPS_CAPTION = (
    "Each outline surrounds patches that are one token by now, in their mean colour. Outlines with the same number in "
    "a panel are one token too. Everything else is still a token for each patch."
)


def draw_all(model: nn.Module, image: Tensor, layers: Sequence[int]) -> dict[str, Figure]:
    """Draw what fusion does to an image: groups, similarity and tokens, by name; similarity alone if no tokens fuse.

    Args:
        model: With `layers`, `patch_embed.grid_size`, and the mean and std of its images in `default_cfg`.
        image: As the model takes it, [C, H, W].
        layers: Layers after which to draw the groups.
    """
    record = traced(model, image.unsqueeze(0))
    similarities = {"similarity": draw_similarity(record)}
    if len(set(record.tokens)) == 1:
        return similarities
    groups = draw_groups(denormalised(model, image), record, layers, model.patch_embed.grid_size)
    return {"groups": groups, **similarities, "tokens": draw_counts({"": record.tokens})}


def denormalised(model: nn.Module, images: Tensor) -> Tensor:
    """Undo a model's normalisation of images [..., C, H, W]: [..., 3, H, W] on the CPU, from 0 to 1."""
    mean, std = (rearrange(torch.tensor(model.default_cfg[name]), "c -> c 1 1") for name in ("mean", "std"))
    if images.shape[-3] == 1:
        mean, std = mean.mean(), std.mean()
    return (images.cpu() * std + mean).clamp(0, 1).expand(*images.shape[:-3], 3, -1, -1)


def three_depths(model: nn.Module) -> list[int]:
    """Return the layers to draw by default: one third, two thirds and all of the way through the layers that fuse."""
    fusing = [i for i, block in enumerate(model.layers) if isinstance(block.fusion, TokenFusion)]
    among = fusing or list(range(len(model.layers)))
    return sorted({among[-(-len(among) * third // 3) - 1] for third in (1, 2, 3)})


def draw_groups(image: Tensor, trace: Trace, layers: Sequence[int], grid_size: tuple[int, int]) -> Figure:
    """Draw the image, and for each layer the image with every fused group outlined and in its mean colour.

    Groups that touch have different colours; parts of one group that don't touch have the same number.

    Args:
        image: [3, H, W] in [0, 1], the first of the traced batch. A pruned patch is drawn with the patch that it was
            most similar to.
        trace: Of a forward pass with the image.
        layers: Layers after which to draw the groups.
        grid_size: Patches of the model, (rows, columns).
    """
    cell = max(PANEL_INCHES / max(grid_size), CELL_INCHES)
    columns = len(layers) + 1
    width, height = (0.1 + cell * patches for patches in reversed(grid_size))
    figure = Figure(figsize=(width * columns, height + 0.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    pixels = rearrange(image, "c h w -> h w c").numpy()
    _show(axes[0], pixels, f"image, {_tokens(trace.tokens[0])}")
    for axis, layer in zip(axes[1:], layers, strict=True):
        groups = rearrange(trace.groups(layer)[0], "(h w) -> h w", h=grid_size[0]).numpy()
        _show(axis, _fill(pixels, groups), f"after layer {layer}, {_tokens(trace.tokens[layer + 1])}")
        _outline(axis, groups, pixels.shape[:2])
        _number(axis, groups, pixels.shape[:2], POINTS * cell)
    figure.supxlabel(fill(GROUPS_CAPTION, width=int(12 * width * columns)), fontsize=9)
    return figure


def draw_similarity(trace: Trace) -> Figure:
    """Draw for each layer a map of the cosine between every two tokens of the first image, before they fuse."""
    maps = [similarity(tokens)[0].numpy() for tokens in trace.before]
    columns = min(6, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(1.7 * columns + 0.9, 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for layer, (axis, values) in enumerate(zip(axes.flat, maps, strict=False)):
        shown = axis.imshow(values, vmin=-1, vmax=1, cmap=SIMILARITY_COLOURS, interpolation="nearest")
        axis.set_title(f"layer {layer}, {_tokens(len(values))}", fontsize=9)
    figure.colorbar(shown, ax=axes, label="cosine of two tokens", shrink=0.8)
    return figure


def draw_counts(counts: dict[str, Sequence[int]]) -> Figure:
    """Draw the tokens before layer 0 and after each layer, one stepped line for each name."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(counts.items(), cycle(PALETTE), strict=False):
        axis.stairs(values, np.arange(len(values) + 1) - 0.5, baseline=None, label=name, color=colour, linewidth=2)
    axis.set_xlabel("layer (last step: after all of them)")
    axis.set_ylabel("tokens that go in")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if len(counts) > 1:
        axis.legend()
    return figure


def draw_redundancy(values: Tensor) -> Figure:
    """Draw how alike patches are after each layer, over many images: the median and the middle half of the images.

    Args:
        values: `redundancy` of every layer and image, [layers, images].
    """
    low, middle, high = (torch.quantile(values, share, dim=1).numpy() for share in (0.25, 0.5, 0.75))
    layers = np.arange(len(middle))
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(layers, low, high, color=PALETTE[3], alpha=0.25, linewidth=0, label="middle half of the images")
    axis.plot(layers, middle, color=PALETTE[3], marker="o", markersize=3.5, label="median")
    axis.set_xlabel("layer")
    axis.set_ylabel("cosine to the most similar patch")
    axis.grid(alpha=0.3)
    axis.legend(title=f"{values.shape[1]:,} images")
    return figure


@torch.no_grad()
def traced(model: nn.Module, images: Tensor) -> Trace:
    """Trace one forward pass in evaluation mode; the trace is on the CPU for drawing, the model is left as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with trace(model) as record:
            model(images)
    finally:
        for module in training:
            module.training = True
    for tokens in (record.before, record.after):
        tokens[:] = [
            item._replace(**{name: _to_cpu(value) for name, value in item._asdict().items()}) for item in tokens
        ]
    return record


def redundancies(record: Trace) -> Tensor:
    """Return `redundancy` of each layer's tokens before they fuse, [layers, images]."""
    return torch.stack([redundancy(tokens) for tokens in record.before])


def _to_cpu(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.cpu()


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _show(axis: Axes, pixels: np.ndarray, title: str) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _fill(pixels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Replace the pixels of every group of several patches by their mean."""
    each = _per_pixel(groups, pixels.shape[:2])
    filled = pixels.copy()
    for group in groups_of_several(groups):
        filled[each == group] = pixels[each == group].mean(axis=0)
    return filled


def _outline(axis: Axes, groups: np.ndarray, size: tuple[int, int]) -> None:
    """Outline each group of several patches in one colour: draw a patch's sides that border on another group."""
    step_y, step_x = size[0] / groups.shape[0], size[1] / groups.shape[1]
    colours = {group: GROUP_COLOURS[n % len(GROUP_COLOURS)] for group, n in colour_numbers(groups).items()}
    padded = np.pad(groups, 1, constant_values=-1)
    inset = 0.07 * min(step_x, step_y)
    lines, shades = [], []
    for (row, column), group in np.ndenumerate(groups):
        if group not in colours:
            continue
        up, down = padded[row, column + 1] != group, padded[row + 2, column + 1] != group
        before, behind = padded[row + 1, column] != group, padded[row + 1, column + 2] != group
        left, right = column * step_x - 0.5 + before * inset, (column + 1) * step_x - 0.5 - behind * inset
        top, bottom = row * step_y - 0.5 + up * inset, (row + 1) * step_y - 0.5 - down * inset
        sides = {
            ((left, top), (right, top)): up,
            ((left, bottom), (right, bottom)): down,
            ((left, top), (left, bottom)): before,
            ((right, top), (right, bottom)): behind,
        }
        drawn = [side for side, is_border in sides.items() if is_border]
        lines += drawn
        shades += [colours[group]] * len(drawn)
    axis.add_collection(LineCollection(lines, colors=shades, linewidths=1.6, capstyle="projecting"))


def _number(axis: Axes, groups: np.ndarray, size: tuple[int, int], cell_points: float) -> None:
    """Write the same number into every part of a group that has several parts."""
    step_y, step_x = size[0] / groups.shape[0], size[1] / groups.shape[1]
    scattered = [found for group in groups_of_several(groups) if len(found := parts(groups, group)) > 1]
    for number, found in enumerate(scattered, start=1):
        for row, column in map(middle, found):
            axis.text(
                (column + 0.5) * step_x - 0.5,
                (row + 0.5) * step_y - 0.5,
                str(number),
                fontsize=0.5 * cell_points,
                color="white",
                ha="center",
                va="center_baseline",
                path_effects=[withStroke(linewidth=0.1 * cell_points, foreground="black")],
            )


def _per_pixel(groups: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the group of every pixel; if patches overlap, that of the grid's cell that the pixel is in."""
    rows = np.arange(size[0]) * groups.shape[0] // size[0]
    columns = np.arange(size[1]) * groups.shape[1] // size[1]
    return groups[rows[:, None], columns]
