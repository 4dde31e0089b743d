"""Draw how each fusion strategy shortens the sequence, layer by layer.

python scripts/plot_strategies.py --output docs/images/strategies.png
"""

import argparse
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fusion

DEPTH, LENGTH = 24, 197  # images of 224 pixels, patches of 16, a class token
EXAMPLES = {  # arguments of fusion.plan beside strategy and depth
    "no": {},
    "all": {"tokens": 7},
    "interleaved": {"tokens": 14},
    "lower": {"layer": 18, "tokens": 9},
    "upper": {"layer": 6, "tokens": 9},
}
SYMBOLS = {"layer": "K", "tokens": "r"}
FUSES, PLAIN, INK, MUTED = "#0072B2", "#CBD5DC", "#1F2933", "#66717D"  # told apart by lightness, not by hue alone


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/strategies.png"), metavar="FILE")
    output = parser.parse_args(argv).output
    output.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(output, dpi=100)


def draw() -> Figure:
    """Draw one panel for each strategy, side by side."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    panels = figure.subplots(1, len(EXAMPLES), sharey=True)
    for axes, (strategy, arguments) in zip(panels, EXAMPLES.items(), strict=True):
        draw_panel(axes, strategy, arguments)
    panels[0].set_ylabel("tokens in the layer", color=MUTED)
    keys = [Rectangle((0, 0), 1, 1, color=color) for color in (FUSES, PLAIN)]
    labels = ["fuses r tokens at its end", "fuses none"]
    figure.legend(keys, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, handlelength=1)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def draw_panel(axes: Axes, strategy: str, arguments: dict[str, int]) -> None:
    """Draw the tokens in each layer under one strategy; the layers that fuse stand out."""
    plan = fusion.plan(strategy, DEPTH, **arguments)
    *inside, left = fusion.token_counts(plan, LENGTH)
    colors = [FUSES if tokens else PLAIN for tokens in plan]
    axes.bar(range(DEPTH), inside, width=1, color=colors, edgecolor="white", linewidth=0.6)
    axes.stairs(inside, [i - 0.5 for i in range(DEPTH + 1)], color=INK, linewidth=1.2)

    values = "   ".join(f"{SYMBOLS[name]} = {value}" for name, value in arguments.items())
    axes.set_title(strategy, loc="left", pad=22, fontsize=11, fontweight="bold", color=INK)
    axes.set_title(values, loc="right", pad=22, fontsize=9, color=INK)
    axes.annotate(
        f"{LENGTH} → {left}, mean {sum(inside) / DEPTH:.0f}",
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=MUTED,
    )

    axes.set(xlim=(-0.5, DEPTH - 0.5), ylim=(0, LENGTH + 2), xticks=[0, 6, 12, 18, DEPTH - 1], yticks=range(0, 201, 50))
    axes.set_xlabel("layer", color=MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


if __name__ == "__main__":
    main()
