"""Find the contiguous parts of groups of patches on the grid, and colours that tell neighbours apart."""

import numpy as np
from scipy.ndimage import label


def groups_of_several(groups: np.ndarray) -> list[int]:
    """Return the groups of more than one patch, in order; groups [rows, columns] holds each patch's group."""
    return [int(group) for group, patches in zip(*np.unique(groups, return_counts=True), strict=True) if patches > 1]


def parts(groups: np.ndarray, group: int) -> list[np.ndarray]:
    """Return a group's parts, whose patches touch by their sides: of each the patches' (row, column), [patches, 2]."""
    labelled, count = label(groups == group)
    return [np.argwhere(labelled == part) for part in range(1, count + 1)]


def middle(part: np.ndarray) -> np.ndarray:
    """Return the patch of a part that is closest to its centre: (row, column)."""
    return part[((part - part.mean(axis=0)) ** 2).sum(axis=1).argmin()]


def colour_numbers(groups: np.ndarray) -> dict[int, int]:
    """Number the groups of several patches so that neighbours differ, with numbers as small as possible.

    Neighbours touch by a side or a corner. Groups with the most neighbours choose first (Welsh and Powell, 1967).
    """
    neighbours = _neighbours(groups)
    chosen: dict[int, int] = {}
    for group in sorted(groups_of_several(groups), key=lambda group: (-len(neighbours[group]), group)):
        taken = {chosen.get(other) for other in neighbours[group]}
        chosen[group] = next(number for number in range(len(taken) + 1) if number not in taken)
    return chosen


def _neighbours(groups: np.ndarray) -> dict[int, set[int]]:
    """Return for each group of several patches the groups of several patches that it touches."""
    found = {group: set() for group in groups_of_several(groups)}
    rows, columns = groups.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = groups[: rows - down, max(0, -right) : columns - max(0, right)]
        there = groups[down:, max(0, right) : columns + min(0, right)]
        for a, b in zip(here.flat, there.flat, strict=True):
            if a != b and a in found and b in found:
                found[a].add(int(b))
                found[b].add(int(a))
    return found
