import pytest

from models_mamba import VisionMamba
from training.build import model as build
from training.settings.command_line import parse_args


def test_a_model_without_one_class_token_names_the_flag(monkeypatch):
    two = VisionMamba(img_size=8, patch_size=2, depth=1, embed_dim=8, num_classes=2, class_token="double")
    monkeypatch.setattr(build, "build_model", lambda settings, **options: two)
    with pytest.raises(ValueError, match="^--if_random_cls_token_position needs one class token, not 2$"):
        build.new_model(parse_args(["--if_random_cls_token_position"]))
