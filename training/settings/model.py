"""Declare the flags of the model and of token fusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fusion import CHOICES, SCHEDULES, STRATEGIES
from training.settings.flag import flag
from training.settings.kinds import ImageSize, key_value, positive, share

FUSION_RECIPES = Path(__file__).parents[2] / "recipes" / "fusion"


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Choose the model, and the size and channels of its images."""

    model: str = flag(
        "vim_pico_patch2_8",
        "a model of models_mamba.py: vim_tiny_patch16_224, ...",
        metavar="NAME",
        follows="model",
        fixed=True,
        cost=True,
        shown=True,
    )
    input_size: tuple[int, int] | None = flag(
        None,
        "size of the images in pixels: one number, or height and width; by default the model's own",
        positive,
        action=ImageSize,
        metavar="PX",
        nargs="+",
        follows="model",
        cost=True,
    )
    in_chans: int = flag(
        3, "channels of the images: 3, or 1 for grey ones", int, choices=(1, 3), follows="model", cost=True
    )
    model_kwargs: Sequence[str] | None = flag(
        None,
        "other arguments of the model than its name gives: depth=12 class_token=front ...",
        key_value,
        metavar="KEY=VALUE",
        nargs="+",
        follows="model",
        fixed=True,
        cost=True,
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelChoice):
    """Choose the model, which of its weights learn, and how it is regularised."""

    TITLE: ClassVar[str | None] = "model"

    drop: float = flag(0.0, "dropout probability after the position embedding", share, metavar="P")
    drop_path: float = flag(
        0.1,
        "stochastic depth: probability of dropping the last layer's output, falling linearly to 0 at the first",
        share,
        metavar="P",
        shown=True,
    )
    model_ema: bool = flag(True, "keep, evaluate and save an exponential moving average of the weights")
    model_ema_decay: float = flag(0.99996, "decay of the average, once it is warmed up", share, metavar="D")
    model_ema_force_cpu: bool = flag(
        False, "keep the average in CPU memory; a run on a GPU saves it but doesn't evaluate it"
    )
    train_only: str = flag(
        "all",
        "what learns: all weights; the mixers, head and position embedding; or the head",
        choices=("all", "mixer", "head"),
    )
    train_mode: bool = flag(True, "use dropout and stochastic depth in training")
    if_random_cls_token_position: bool = flag(
        False,
        "put the class token at a random place of each training batch",
        spelling="--if_random_cls_token_position",
        fixed=True,
    )
    if_random_token_rank: bool = flag(
        False, "put all tokens of each training batch in a random order", spelling="--if_random_token_rank", fixed=True
    )
    grad_checkpointing: bool = flag(
        False, "keep only each layer's input for the backward pass: less memory, about a third more time", cost=True
    )


@dataclass(frozen=True, kw_only=True)
class FusionPlanSettings:
    """Choose after which layers tokens fuse, and how many."""

    TITLE: ClassVar[str | None] = "token fusion"

    fusion_strategy: str = flag(
        "no",
        f"which layers fuse: {', '.join(STRATEGIES)}",
        metavar="NAME",
        follows="fusion_strategy",
    )
    fusion_layer: int | None = flag(
        None,
        "lower fuses in the layers below K, upper in layer K and those above it; layers count from 0",
        int,
        metavar="K",
        follows="fusion_strategy",
    )
    fusion_token: int = flag(
        0, "tokens to fuse after each chosen layer", int, metavar="R", follows="fusion_strategy", amount=True
    )
    fusion_total: int | None = flag(
        None,
        "instead of --fusion-token: tokens to fuse in all chosen layers together",
        int,
        metavar="N",
        follows="fusion_strategy",
        amount=True,
    )
    fusion_keep: float | None = flag(
        None,
        "instead of --fusion-token: share of the patches that is left after the last layer",
        share,
        metavar="S",
        follows="fusion_strategy",
        amount=True,
    )
    fusion_cost: float | None = flag(
        None,
        "instead of --fusion-token: share of an image's multiply-adds that is left, matching included",
        share,
        metavar="S",
        follows="fusion_strategy",
        amount=True,
    )
    fusion_schedule: str = flag(
        "constant",
        "fuse the same number of tokens in each chosen layer, or more in the first, or more in the last",
        choices=SCHEDULES,
        follows="fusion_strategy",
    )
    fusion_plan: str | None = flag(
        None,
        "instead of all these: tokens to fuse after each layer, one number for each",
        metavar="R,R,...",
        follows="fusion_strategy",
        amount=True,
    )
    fusion_clip: bool = flag(
        False,
        "fuse half of a layer's patch tokens if it is to fuse more, instead of an error",
        follows="fusion_strategy",
    )
    notes: Sequence[str] = flag(
        (), "what became of flags that the command line gives without use", noted=True, compared=False, repeated=False
    )


def _choice(name: str, help: str) -> Any:
    """Declare the flag of one choice of fusion.Method."""
    return flag(CHOICES[name][0], help, choices=CHOICES[name], follows=f"fusion_{name}", fixed=True)


@dataclass(frozen=True, kw_only=True)
class FusionMethodSettings:
    """Choose how tokens fuse, the same in all layers: the choices of fusion.Method."""

    TITLE: ClassVar[str | None] = "token fusion"

    fusion_average: str = _choice(
        "average", "average two tokens equally, or weighted by the number of patches that each holds"
    )
    fusion_metric: str = _choice(
        "metric",
        "compare tokens by the mixer's output, by the residual sum before or after adding it, or by the mixer's step "
        "sizes, its B or C, or its scan's output",
    )
    fusion_distance: str = _choice("distance", "how the similarity of two tokens is measured")
    fusion_order: str = _choice(
        "order", "keep tokens in sequence order, or concatenate sources and targets as ToMe does"
    )
    fusion_reduce: str = _choice("reduce", "average a token into the one most similar to it, or drop it")
    fusion_match: str = _choice(
        "match", "fuse the most similar pairs, random pairs as a control, or those whose source has the lowest score"
    )
    fusion_score: str = _choice(
        "score", "which half of the tokens may vanish: by place, every other one; or the lowest by step size or scan"
    )


@dataclass(frozen=True, kw_only=True)
class FusionSettings(FusionMethodSettings, FusionPlanSettings):
    """Choose after which layers tokens fuse, how many, and how."""

    TITLE: ClassVar[str | None] = "token fusion"

    fusion_recipe: str | None = flag(
        None,
        "the flags of a published method, a file of recipes/fusion/, for those of the flags above that aren't given",
        choices=tuple(sorted(file.stem for file in FUSION_RECIPES.glob("*.yaml"))),
        compared=False,  # the flags that it sets are compared instead
        repeated=False,
    )
