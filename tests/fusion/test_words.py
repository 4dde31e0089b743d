"""Plans in one word each: what every form makes, several amounts, and what can't be read."""

import re

import pytest
import timm

import fusion
import models_mamba  # noqa: F401, registers the models
from fusion.words import named_plans


@pytest.fixture(scope="module")
def model():
    return timm.create_model("vim_pico_patch2_8")  # 6 layers, 16 patches


@pytest.mark.parametrize(
    ("word", "plan"),
    [
        ("no", (0, 0, 0, 0, 0, 0)),
        ("all:2", (2, 2, 2, 2, 2, 2)),
        ("upper:4:3", (0, 0, 0, 0, 3, 3)),
        ("lower:2=7", (4, 3, 0, 0, 0, 0)),
        ("interleaved=6", (0, 2, 0, 2, 0, 2)),
        ("0,0,4,0,0,0", (0, 0, 4, 0, 0, 0)),
        ("searched:0,0,4,0,0,1", (0, 0, 4, 0, 0, 1)),
    ],
)
def test_what_a_word_makes(model, word, plan):
    (found,), misfits = named_plans(word, model)
    assert found.plan == plan
    assert found.name == word.removesuffix(":0,0,4,0,0,1")
    assert misfits == []


def test_a_share_of_the_multiply_adds(model):
    (found,), _ = named_plans("upper:1@.8", model)
    assert found.plan == fusion.plan_at_cost(model, 0.8, "upper", 1)
    method = fusion.Method(match="random")  # which costs nothing
    (at_random,), _ = named_plans("upper:1@.8", model, method)
    assert at_random.plan == fusion.plan_at_cost(model, 0.8, "upper", 1, method=method)


def test_several_amounts_are_a_series(model):
    found, misfits = named_plans("upper:4=2,3,40", model)
    assert [(each.name, each.series, sum(each.plan)) for each in found] == [
        ("upper:4=2", "upper:4", 2),
        ("upper:4=3", "upper:4", 3),
    ]
    assert misfits == ["upper:4=40: layer 4 has 16 patch tokens and can fuse at most 8, not 20"]
    found, _ = named_plans("all@0.9,0.8", model)
    assert [each.name for each in found] == ["all@0.9", "all@0.8"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("uper:3", "uper:3: unknown `strategy` uper (did you mean upper?)"),
        ("upper:3", "upper:3: upper needs `layer`, 0 to 5 for 6 layers"),
        ("all:2:3", "all:2:3: `layer` is for lower and upper"),
        ("all:9", "all:9: layer 0 has 16 patch tokens and can fuse at most 8, not 9"),
        ("upper:5@0.3", "upper:5@0.3: `share` 0.3 is less than upper can reach"),
        ("no:3", "no:3: `tokens` 3 fuses nothing under `strategy` no"),
        ("1,2,3", "1,2,3: `text` has 3 numbers, the model 6 layers"),
        ("mine:1,2", "mine: `text` has 2 numbers"),
        ("all:1,2.5", "all:1,2.5: must be no, STRATEGY[:LAYER]:TOKENS"),
        ("all", "all: must be no, STRATEGY[:LAYER]:TOKENS"),
        ("upper:x", "upper:x: must be"),
        ("all@1.2.3", "all@1.2.3: must be"),
        ("", ": must be"),
    ],
)
def test_what_is_wrong(model, word, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        named_plans(word, model)
