"""Groups of patches on the grid: parts, middles, colours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.parts import colour_numbers, groups_of_several, middle, parts

GRID = np.array(
    [
        [1, 1, 2, 3],
        [4, 1, 5, 2],
        [6, 7, 1, 2],
        [6, 8, 8, 1],
    ]
)


def test_groups_of_several_patches():
    assert groups_of_several(GRID) == [1, 2, 6, 8]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (1, [[(0, 0), (0, 1), (1, 1)], [(2, 2)], [(3, 3)]]),
        (2, [[(0, 2)], [(1, 3), (2, 3)]]),
        (6, [[(2, 0), (3, 0)]]),
    ],
)
def test_parts_touch_by_their_sides(group, expected):
    assert [[tuple(patch) for patch in part] for part in parts(GRID, group)] == expected


def test_the_middle_of_a_part_lies_in_it():
    assert tuple(middle(parts(GRID, 1)[0])) == (0, 1)
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    assert tuple(middle(parts(ring, 1)[0])) in {(0, 1), (1, 0), (1, 2), (2, 1)}


grids = arrays(int, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 9))


@given(grids)
def test_parts_hold_every_patch_once(grid):
    for group in groups_of_several(grid):
        held = [tuple(patch) for part in parts(grid, group) for patch in part]
        assert sorted(held) == sorted(map(tuple, np.argwhere(grid == group)))


@given(grids)
def test_groups_that_touch_differ_in_colour(grid):
    numbers = colour_numbers(grid)
    assert set(numbers) == set(groups_of_several(grid))
    padded = np.pad(grid, 1, constant_values=-1)
    for (row, column), group in np.ndenumerate(grid):
        for other in set(padded[row : row + 3, column : column + 3].flat) - {group}:
            if group in numbers and other in numbers:
                assert numbers[group] != numbers[other]


def test_no_more_colours_than_neighbours_need():
    stripes = np.repeat(np.arange(8), 2).reshape(8, 2)
    assert set(colour_numbers(stripes).values()) == {0, 1}
