"""Parity with golden data from an independent implementation, three chained steps a file.

Every output is compared with the one of ours that holds the same inputs (golden's incidence matrix says which). In the
ordered files the patches must also come in golden's order; its class token is excepted, since it is put back at a
rounded place instead of its rank.
"""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from fusion import Method, match

GOLDEN = Path(__file__).parents[1] / "golden"
ORDERED = ["rmeeto_T17_r3", "rmeeto_T17_r3_pos0", "rmeeto_T17_r8_clip", "rmeeto_T18_r4", "rmeeto_T65_r9"]
CONCATENATED = ["rmeeto_T17_r3_unordered", "tome_T18_r3_nocls"]


def steps(names, modes=("mean", "wavg")):
    files = {name: torch.load(GOLDEN / f"fusion_{name}.pt", weights_only=True) for name in names}
    return [
        pytest.param(golden["r"], step, id=f"{name}-{mode}-{i}")
        for name, golden in files.items()
        for mode in modes
        for i, step in enumerate(golden["chains"][mode])
    ]


def class_token(step):
    position = step.get("token_position_in")
    return None if position is None else torch.full((len(step["x_in"]), 1), position)


def merge(step, r, x):
    """Our matching, merged tokens and sizes (None for means) of one golden step."""
    matching = match(x, r, class_token(step))
    if "size_out" not in step:
        return matching, matching.merge(x), None
    size = step.get("size_in", torch.ones_like(x[..., :1])).squeeze(-1)
    return matching, *matching.merge(x, size)


def place_of_golden_outputs(matching, step):
    """For each golden output, where we have the tokens that it holds: [B, T_out]."""
    some_input = step["source"].argmax(dim=-1)
    return matching.index.gather(1, some_input)


@pytest.mark.parametrize(("r", "step"), steps(ORDERED + CONCATENATED))
def test_same_tokens_fuse(r, step):
    matching = match(step["x_in"], r, class_token(step))
    ours = torch.stack([matching.source, matching.target], dim=-1).tolist()
    for image, golden in zip(ours, step["pairs"].tolist(), strict=True):
        assert sorted(image) == sorted(golden)

    groups = torch.nn.functional.one_hot(matching.index, step["T_out"]).mT
    at = place_of_golden_outputs(matching, step)
    assert torch.equal(groups[torch.arange(len(at))[:, None], at], step["source"].long())


@pytest.mark.parametrize(("r", "step"), steps(ORDERED + CONCATENATED))
def test_same_values_and_gradients(r, step):
    x = step["x_in"].clone().requires_grad_()
    matching, merged, size = merge(step, r, x)
    at = place_of_golden_outputs(matching, step).unsqueeze(-1).expand_as(merged)
    assert_close(merged.gather(1, at), step["x_out"])
    if size is not None:
        assert_close(size.unsqueeze(-1).gather(1, at[..., :1]), step["size_out"])

    merged.gather(1, at).backward(step["grad_coeffs"])
    assert_close(x.grad, step["grad_x_in"])


@pytest.mark.parametrize(("r", "step"), steps(ORDERED))
def test_patches_stay_in_golden_order(r, step):
    matching, merged, _ = merge(step, r, step["x_in"])
    is_patch = torch.ones(merged.shape[:2], dtype=torch.bool).scatter(1, matching.cls_index, False)
    golden = step["x_out"]
    golden_patch = torch.arange(step["T_out"]) != step["token_position_out"]
    assert_close(merged[is_patch], golden[:, golden_patch].flatten(0, 1))
    assert torch.equal(merged[~is_patch], golden[:, step["token_position_out"]])


@pytest.mark.parametrize(("r", "step"), steps(["tome_T18_r3_nocls"], modes=["mean"]))
def test_index_spreads_tokens_back(r, step):
    matching, merged, _ = merge(step, r, step["x_in"])
    spread = merged.gather(1, matching.index.unsqueeze(-1).expand_as(step["x_in"]))
    assert_close(spread, step["unmerge_of_out"])


def test_r_is_clipped_as_in_golden():
    chain = torch.load(GOLDEN / "fusion_rmeeto_T17_r8_clip.pt", weights_only=True)["chains"]["mean"]
    fused = [match(step["x_in"], 8, class_token(step)).source.shape[1] for step in chain]
    assert fused == [step["r_effective"] for step in chain] == [8, 4, 2]


@pytest.mark.parametrize(("r", "step"), steps(CONCATENATED))
def test_concatenated_order_is_goldens(r, step):
    """Golden's outputs as they stand, class token included."""
    x = step["x_in"].clone().requires_grad_()
    matching = match(x, r, class_token(step), Method(order="concat"))
    if "size_out" in step:
        size = step.get("size_in", torch.ones_like(x[..., :1])).squeeze(-1)
        merged, size = matching.merge(x, size)
        assert_close(size.unsqueeze(-1), step["size_out"])
    else:
        merged = matching.merge(x)
    assert_close(merged, step["x_out"])
    if "token_position_out" in step:
        assert (matching.cls_index == step["token_position_out"]).all()
    merged.backward(step["grad_coeffs"])
    assert_close(x.grad, step["grad_x_in"])
