"""Pictures: groups filled by their mean and outlined, one map a layer, counts, and a model left as it was."""

import numpy as np
import pytest
import torch
from timm.models import create_model

import fusion
import models_mamba
from fusion import pictures
from fusion.parts import groups_of_several, parts


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = create_model("vim_pico_patch2_8", num_classes=3)
    fusion.inject(model, (0, 4, 0, 2, 0, 0))
    return model


IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_denormalised(model):
    mean, std = (torch.tensor(model.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(pictures.denormalised(model, (IMAGE - mean) / std), IMAGE)
    grey = (IMAGE[:1] - mean.mean()) / std.mean()
    torch.testing.assert_close(pictures.denormalised(model, grey[None]), IMAGE[None, :1].expand(1, 3, 8, 8))


def test_groups_are_filled_by_their_mean(model):
    record = pictures.traced(model, IMAGE[None])
    figure = pictures.draw_groups(IMAGE, record, [0, 3], (4, 4))
    shown = [axis.images[0].get_array() for axis in figure.axes]
    original = IMAGE.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown[0], original)
    np.testing.assert_array_equal(shown[1], original)
    groups = record.groups(3)[0].view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
    for group in np.unique(groups):
        pixels = original[groups == group]
        expected = pixels if len(pixels) == 4 else np.broadcast_to(pixels.mean(axis=0), pixels.shape)
        np.testing.assert_allclose(shown[2][groups == group], expected, rtol=1e-6)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image, 17 tokens", "after layer 0, 17 tokens", "after layer 3, 11 tokens"]


def test_outlines_surround_groups_of_several_patches_only(model):
    record = pictures.traced(model, IMAGE[None])
    figure = pictures.draw_groups(IMAGE, record, [0, 1], (4, 4))
    unfused, fused = (axis.collections[0].get_segments() for axis in figure.axes[1:])
    assert unfused == []
    groups = record.groups(1)[0].view(4, 4)
    counts = torch.bincount(groups.flatten())
    padded = torch.nn.functional.pad(groups, (1, 1, 1, 1), value=-1)
    borders = 0
    for row in range(4):
        for column in range(4):
            here = groups[row, column]
            if counts[here] > 1:
                around = [
                    padded[row, column + 1],
                    padded[row + 2, column + 1],
                    padded[row + 1, column],
                    padded[row + 1, column + 2],
                ]
                borders += sum(int(other != here) for other in around)
    assert len(fused) == borders > 0


def test_parts_of_one_group_have_one_number(model):
    """And a group in one part has none."""
    record = pictures.traced(model, IMAGE[None])
    figure = pictures.draw_groups(IMAGE, record, [0, 5], (4, 4))
    unfused, fused = (list(axis.texts) for axis in figure.axes[1:])
    assert unfused == []
    groups = record.groups(5)[0].view(4, 4).numpy()
    found = {}
    for text in fused:
        x, y = text.get_position()
        found.setdefault(text.get_text(), []).append(groups[int((y + 0.5) / 2), int((x + 0.5) / 2)])
    scattered = [group for group in groups_of_several(groups) if len(parts(groups, group)) > 1]
    assert found == {str(n): [g] * len(parts(groups, g)) for n, g in enumerate(scattered, start=1)}
    assert scattered


def test_a_caption_explains(model):
    figure = pictures.draw_groups(IMAGE, pictures.traced(model, IMAGE[None]), [5], (4, 4))
    assert "Outlines with the same number" in " ".join(figure.get_supxlabel().split())


def test_nothing_fuses_nothing_is_grouped(model):
    fusion.inject(model, (0,) * 6)
    assert set(pictures.draw_all(model, IMAGE, [5])) == {"similarity"}


def test_all_figures(model):
    model.train()
    figures = pictures.draw_all(model, IMAGE, [5])
    assert set(figures) == {"groups", "similarity", "tokens"}
    assert model.training
    maps = [axis.images[0].get_array() for axis in figures["similarity"].axes if axis.images]
    assert [len(values) for values in maps] == [17, 17, 13, 13, 11, 11]
    assert figures["tokens"].axes[0].patches[0].get_data().values.tolist() == [17, 17, 13, 13, 11, 11, 11]


def test_redundancy_over_images(model):
    values = pictures.redundancies(pictures.traced(model, torch.rand(5, 3, 8, 8)))
    assert values.shape == (6, 5)
    figure = pictures.draw_redundancy(values)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), values.median(dim=1).values)


def test_three_depths_among_layers_that_fuse(model):
    assert pictures.three_depths(model) == [1, 3]
    fusion.inject(model, (0,) * 6)
    assert pictures.three_depths(model) == [1, 3, 5]


def test_a_traced_model_is_left_as_it_was():
    model = models_mamba.vim_pico_patch2_8(depth=2)
    model.layers[0].eval()
    before = [module.training for module in model.modules()]
    pictures.traced(model, torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="takes images of"):
        pictures.traced(model, torch.rand(1, 3, 9, 9))
    assert [module.training for module in model.modules()] == before


def test_counts_of_any_number_of_plans():
    figure = pictures.draw_counts({str(r): [17, 17 - r] for r in range(9)})
    assert len(figure.axes[0].patches) == 9
