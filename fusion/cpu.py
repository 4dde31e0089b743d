"""Match and merge in C++ on CPUs: one operation for each, as fusion.matching and fusion.merging define them."""

from functools import cache
from pathlib import Path

from fusion import shapes
from native import load_library


@cache
def unavailable() -> str | None:
    """Return in one line why the operations can't run here, None if they can. The first call compiles them."""
    try:
        # Products and sums are rounded one by one, as PyTorch's are.
        load_library(Path(__file__).parent, "fusion", flags=["-ffp-contract=off"])
    except RuntimeError as error:
        return str(error)
    shapes.register("vim")  # csrc/gradients.cpp has the gradients
    return None
