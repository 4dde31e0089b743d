"""Pictures of plans: what a panel shows of its plan, and the same in one line of text."""

from fusion.plan_pictures import FUSES, blocks, draw_plans


def test_panels_show_their_plans():
    figure = draw_plans({"no": (0, 0, 0), "mine": (0, 4, 0)}, 10, {"mine": "cost 0.9"})
    plain, mine = figure.axes
    assert [bar.get_height() for bar in mine.patches[:3]] == [10, 10, 6]
    fusing = [bar.get_facecolor()[:3] for bar in mine.patches[:3]]
    assert fusing[0] == fusing[2] != fusing[1]
    assert len({bar.get_facecolor() for bar in plain.patches[:3]}) == 1
    assert mine.get_title("left") == "mine"
    assert mine.get_title("right") == "cost 0.9"
    assert "10 → 6, mean 9" in [text.get_text() for text in mine.texts]
    assert FUSES not in (bar.get_facecolor() for bar in plain.patches)


def test_one_panel_is_enough():
    assert len(draw_plans({"no": (0, 0)}, 5).axes) == 1


def test_blocks_fall_with_the_tokens():
    assert blocks((0, 4, 2, 1), 8) == "██▄▂"
    assert blocks((0, 0), 8) == "██"
