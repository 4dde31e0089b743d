"""Draw how plans shorten the sequence, layer by layer."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fusion.plans import token_counts

FUSES, PLAIN, INK, MUTED = "#0072B2", "#CBD5DC", "#1F2933", "#66717D"  # told apart by lightness, not by hue alone
BLOCKS = " ▁▂▃▄▅▆▇█"


def draw_plans(plans: Mapping[str, Sequence[int]], length: int, notes: Mapping[str, str] = {}) -> Figure:
    """Draw one panel for each plan, side by side.

    Args:
        plans: Tokens to fuse after each layer, by the panels' titles.
        length: Tokens before the first layer.
        notes: What to write on the right of a title.
    """
    figure = Figure(figsize=(2 * len(plans), 3.3), layout="constrained")
    panels = figure.subplots(1, len(plans), sharey=True, squeeze=False)[0]
    for axes, (title, plan) in zip(panels, plans.items(), strict=True):
        _draw_panel(axes, title, plan, length, notes.get(title, ""))
    panels[0].set_ylabel("tokens in the layer", color=MUTED)
    keys = [Rectangle((0, 0), 1, 1, color=color) for color in (FUSES, PLAIN)]
    labels = ["fuses tokens at its end", "fuses none"]
    figure.legend(keys, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, handlelength=1)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def blocks(plan: Sequence[int], length: int) -> str:
    """Draw the tokens in each layer in one line of text, such as ████▇▆▅▄."""
    return "".join(BLOCKS[-(-8 * count // length)] for count in token_counts(plan, length)[:-1])


def _draw_panel(axes: Axes, title: str, plan: Sequence[int], length: int, note: str) -> None:
    """Draw the tokens in each layer under one plan; the layers that fuse stand out."""
    *inside, left = token_counts(plan, length)
    depth = len(plan)
    colors = [FUSES if tokens else PLAIN for tokens in plan]
    axes.bar(range(depth), inside, width=1, color=colors, edgecolor="white", linewidth=0.6)
    axes.stairs(inside, [i - 0.5 for i in range(depth + 1)], color=INK, linewidth=1.2)
    axes.set_title(title, loc="left", pad=22, fontsize=11, fontweight="bold", color=INK)
    axes.set_title(note, loc="right", pad=22, fontsize=9, color=INK)
    axes.annotate(
        f"{length} → {left}, mean {sum(inside) / depth:.0f}",
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=MUTED,
    )
    axes.set(xlim=(-0.5, depth - 0.5), ylim=(0, length * 1.01))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("layer", color=MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
