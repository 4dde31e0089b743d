"""Draw how each fusion strategy shortens the sequence, layer by layer.

python scripts/plot_strategies.py --output docs/images/strategies.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fusion
from fusion.plan_pictures import draw_plans

DEPTH, LENGTH = 24, 197  # images of 224 pixels, patches of 16, a class token
EXAMPLES = {  # arguments of fusion.plan beside strategy and depth
    "no": {},
    "all": {"tokens": 7},
    "interleaved": {"tokens": 14},
    "lower": {"layer": 18, "tokens": 9},
    "upper": {"layer": 6, "tokens": 9},
}
SYMBOLS = {"layer": "K", "tokens": "r"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/strategies.png"), metavar="FILE")
    output = parser.parse_args(argv).output
    output.parent.mkdir(parents=True, exist_ok=True)
    plans = {strategy: fusion.plan(strategy, DEPTH, **arguments) for strategy, arguments in EXAMPLES.items()}
    notes = {
        strategy: "   ".join(f"{SYMBOLS[name]} = {value}" for name, value in arguments.items())
        for strategy, arguments in EXAMPLES.items()
    }
    draw_plans(plans, LENGTH, notes).savefig(output, dpi=100)


if __name__ == "__main__":
    main()
