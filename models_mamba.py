"""Define Vision Mamba (Vim, arXiv 2401.09417): patches and class tokens go through bidirectional state space blocks.

Importing this module registers its models with timm: `timm.create_model("vim_tiny_patch16_224")`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from timm.layers import (
    DropPath,
    calculate_drop_path_rates,
    lecun_normal_,
    register_notrace_function,
    register_notrace_module,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ssm import BiMamba, add_and_normalize

CLASS_TOKENS = ("middle", "front", "double", "none")
POOLS = ("", "token", "avg", "last", "max")


class Tokens(NamedTuple):
    """Hold what one layer passes to the next.

    Attributes:
        hidden: Output of the last mixer, [B, L, D].
        residual: Sum of all outputs before it, [B, L, D]; None before the first layer.
        cls_index: Positions of the class tokens in each image, [B, K].
        size: Number of patches that each token stands for, [B, L].
        source: Position of the token that each original patch is part of, or in whose favour it was dropped, [B, M];
            None unless asked for.
    """

    hidden: Tensor
    residual: Tensor | None
    cls_index: Tensor
    size: Tensor
    source: Tensor | None


# torch.fx takes what depends on shapes, devices or training as one operation, not line by line. It finds functions to
# take so only by names without a leading underscore.
register_notrace_module(BiMamba)
register_notrace_module(DropPath)


@register_notrace_module
class PatchEmbed(nn.Module):
    """Embed patches, row by row, by one convolution; patches overlap if its stride is smaller than a patch."""

    def __init__(self, img_size, patch_size, stride, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size, self.stride = to_2tuple(patch_size), to_2tuple(stride or patch_size)
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.stride)

    def set_input_size(self, img_size) -> None:
        """Set the grid of patches for an image size, int or (height, width); raise ValueError unless they tile it."""
        sides = to_2tuple(img_size)
        for size, patch, stride, axis in zip(sides, self.patch_size, self.stride, ("height", "width"), strict=True):
            if size < patch or (size - patch) % stride:
                raise ValueError(
                    f"image {axis} {size} does not divide into patches of {patch} pixels every {stride}: "
                    f"({axis} - {patch}) must be a multiple of {stride}"
                )
        self.img_size = sides
        self.grid_size = tuple(
            (size - patch) // stride + 1
            for size, patch, stride in zip(sides, self.patch_size, self.stride, strict=True)
        )
        self.num_patches = math.prod(self.grid_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [B, C, H, W] as patches [B, M, D]."""
        if images.shape[-2:] != self.img_size:
            raise ValueError(f"the model takes images of {self.img_size} pixels, not {tuple(images.shape[-2:])}")
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Run one layer: add the previous layer's output to the residual, normalise, mix, then fuse tokens if asked to.

    Attributes:
        fusion: The layer's token fusion, set by `fusion.inject`; an identity if the layer fuses nothing.
        wanted: Parts of the mixer that the fusion takes beside the tokens, by the names that `ssm.BiMamba` has.
    """

    def __init__(self, mixer: nn.Module, norm: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = norm
        self.mixer = mixer
        self.fusion = nn.Identity()
        self.wanted: tuple[str, ...] = ()

    def forward(self, tokens: Tokens) -> Tokens:
        hidden, residual = tokens.hidden, tokens.residual
        # The residual never leaves fp32: position embedding and sums are outside what autocast lowers.
        if residual is None:
            residual, normalized = hidden, self.norm(hidden)
        else:
            residual, normalized = add_and_normalize(self.drop_path(hidden), residual, self.norm)
        if self.wanted:
            hidden, parts = self.mixer(normalized, self.wanted)
            return self.fusion(tokens._replace(hidden=hidden, residual=residual), parts)
        return self.fusion(tokens._replace(hidden=self.mixer(normalized), residual=residual))


class VisionMamba(nn.Module):
    """Classify images with Vision Mamba, through the interface of timm's models.

    Args:
        img_size: Pixels, one number or (height, width).
        patch_size: Pixels, one number or (height, width).
        stride: Pixels between patches; patch_size if None.
        in_chans: Channels of the images.
        num_classes: Outputs of the head; 0 for no head.
        global_pool: `token` reads the class tokens (their mean if there are two), `avg`, `last` and `max` the
            patches; `max` is the maximum of the logits over tokens; an empty string pools nothing. None means `token`,
            or `avg` without class tokens.
        class_token: Where class tokens are in the sequence: `middle`, `front`, `double` (both ends) or `none`.
        embed_dim: Width of the tokens, D.
        depth: Layers.
        d_state: States of each channel of the scan, N.
        d_conv: Width of the causal convolution in tokens.
        expand: Channels of the scan for every channel of the tokens.
        bidirectional: Scan in both directions; if False, only from first to last.
        drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last layer's output; the rates of earlier layers rise linearly to it.

    Attributes:
        pos_grid: The grid of patches, (rows, columns), that the position embedding is of. After
            `patch_embed.set_input_size`, images have another grid, and every forward pass resamples the embedding.

    Raises:
        ValueError: Patches don't tile the image, class_token or global_pool is unknown, or a size is no whole number
            of at least 1.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        stride: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        class_token: str = "middle",
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "depth": depth, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
        if not isinstance(bidirectional, bool):
            raise ValueError(f"bidirectional must be True or False, not {bidirectional!r}")
        if class_token not in CLASS_TOKENS:
            raise ValueError(f"class_token must be one of {', '.join(CLASS_TOKENS)}, not {class_token!r}")
        self.class_token = class_token
        self.num_prefix_tokens = {"none": 0, "double": 2}.get(class_token, 1)
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.random_class_position = self.random_order = False

        self.patch_embed = PatchEmbed(img_size, patch_size, stride, in_chans, embed_dim)
        for name in self._class_token_names():
            setattr(self, name, nn.Parameter(torch.zeros(1, 1, embed_dim)))
        length = self.patch_embed.num_patches + self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, length, embed_dim))
        self.pos_grid = self.patch_embed.grid_size
        self.pos_drop = nn.Dropout(drop_rate)

        # A block drops the output of the block before it, so each rate is one block later than in a ViT.
        *rates, final_rate = [0.0, *calculate_drop_path_rates(drop_path_rate, depth)]
        self.layers = nn.ModuleList(
            Block(BiMamba(embed_dim, d_state, d_conv, expand, bidirectional), nn.RMSNorm(embed_dim, eps=1e-5), rate)
            for rate in rates
        )
        self.drop_path = DropPath(final_rate)
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        reduction = self.patch_embed.stride[0]
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]
        default_pool = "token" if self.num_prefix_tokens else "avg"
        self.reset_classifier(num_classes, default_pool if global_pool is None else global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for parameter in (self.pos_embed, *self._class_tokens()):
            trunc_normal_(parameter, std=0.02)
        for block in self.layers:
            out_proj = block.mixer.out_proj.weight
            nn.init.kaiming_uniform_(out_proj, a=math.sqrt(5))
            with torch.no_grad():
                out_proj /= math.sqrt(len(self.layers))

    def _class_token_names(self) -> tuple[str, ...]:
        names = {"none": (), "double": ("cls_token_head", "cls_token_tail")}
        return names.get(self.class_token, ("cls_token",))

    def _class_tokens(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self._class_token_names()]

    # timm's interface

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return patterns of parameters without weight decay: embeddings, and the state space's A_log and D.

        Mamba's authors exempt A_log and D; the published Vim trainings decayed A_log.
        """
        return {"pos_embed", "cls_token*", "*.A_log", "*.D"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Return regular expressions that group parameters by layer; `coarse` makes no difference here."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each layer's input for the backward pass, and recompute the rest there."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def set_scan_recompute(self, enable: bool = True) -> None:
        """Let the mixers recompute part of the scan's inputs in the backward pass: less memory, more time."""
        for module in self.modules():
            if isinstance(module, BiMamba):
                module.recompute = enable

    @torch.jit.ignore
    def set_random_order(self, class_position: bool = False, tokens: bool = False) -> None:
        """Test how much the order matters: put the class token at a random place in every batch, or shuffle all tokens.

        In training only; the class token is read from where it was put. Raise ValueError if class_position is set and
        the model does not have exactly one class token.
        """
        if class_position and self.num_prefix_tokens != 1:
            raise ValueError(f"`class_position` needs one class token, not {self.num_prefix_tokens}")
        self.random_class_position, self.random_order = class_position, tokens

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, and the pooling if global_pool is given; raise ValueError if that can't be."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, not {num_classes}")
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool must be one of {', '.join(POOLS[1:])} or '', not {global_pool!r}")
            if global_pool == "token" and not self.num_prefix_tokens:
                raise ValueError("global_pool 'token' needs a class token")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            like = self.pos_embed
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Set the size of the images that the model takes, and resample the position embedding."""
        self.patch_embed.set_input_size(img_size)
        resized = self._pos_embed_of_images().detach()
        self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        self.pos_grid = self.patch_embed.grid_size

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [B, C, H, W]: logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the final norm, [B, K + L', D]: the K class tokens, then the patches in order."""
        tokens = self._embed(x)
        for block in self.layers:
            tokens = self._run(block, tokens)
        return self._finish(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the tokens of forward_features into logits, or with pre_logits into the head's input."""
        x = self._pool(x)
        if pre_logits:
            return x
        logits = self.head(x)
        return logits.amax(dim=1) if self.global_pool == "max" else logits

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Return the features after chosen layers, on the full grid of patches even if tokens were fused.

        Args:
            x: Images, [B, C, H, W].
            indices: Which layers: an int n for the last n, a list of layers, or None for all.
            return_prefix_tokens: Make each intermediate a pair (patches, class tokens [B, K, D]).
            norm: Apply the final norm to each.
            stop_early: Don't run the layers after the last one asked for.
            output_fmt: `NCHW` for maps [B, D, H', W'], `NLC` for sequences [B, M, D].
            intermediates_only: Leave out the final features.

        Returns:
            (features as from forward_features, list of intermediates), or the list alone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, not {output_fmt!r}")
        take, last = feature_take_indices(len(self.layers), indices)
        tokens = self._embed(x, trace_source=True)
        intermediates = []
        for i, block in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            tokens = self._run(block, tokens)
            if i in take:
                features = tokens.residual + tokens.hidden
                features = self.norm_f(features) if norm else features
                patches = _take_tokens(features, tokens.source)
                if output_fmt == "NCHW":
                    rows, columns = self.patch_embed.grid_size
                    patches = rearrange(patches, "b (h w) d -> b d h w", h=rows, w=columns).contiguous()
                prefix = _take_tokens(features, tokens.cls_index)
                intermediates.append((patches, prefix) if return_prefix_tokens else patches)
        if intermediates_only:
            return intermediates
        return self._finish(tokens), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what forward_intermediates doesn't need for these indices; return them, counted from layer 0."""
        take, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    # steps of the forward pass

    def _embed(self, images: Tensor, trace_source: bool = False) -> Tokens:
        """Turn images into the tokens that enter the first layer."""
        x = self.patch_embed(images)
        B, M = x.shape[0], self.patch_embed.num_patches
        positions = class_token_positions(self.class_token, M)
        if self.random_class_position and self.training:
            positions = (int(torch.randint(M + 1, (1,))),)
        x = insert_tokens(x, [token.expand(B, -1, -1) for token in self._class_tokens()], positions)
        x = self.pos_drop(x + self._pos_embed_of_images())
        L = x.shape[1]
        cls_index = positions_of_all(x, positions)
        source, shuffled = None, self.random_order and self.training
        if trace_source or shuffled:
            source = torch.arange(M, device=x.device)
            for position in positions:
                source = source + (source >= position)
            source = source.expand(B, -1)
        size = x.new_ones(B, L, dtype=torch.promote_types(x.dtype, torch.float32))  # bf16 doesn't count beyond 256
        tokens = Tokens(hidden=x, residual=None, cls_index=cls_index, size=size, source=source)
        return _shuffle(tokens) if shuffled else tokens

    def _pos_embed_of_images(self) -> Tensor:
        """Return the position embedding, resampled if the images have another grid of patches than it."""
        grid = self.patch_embed.grid_size
        if grid == self.pos_grid:
            return self.pos_embed
        return resize_pos_embed(self.pos_embed, grid, self.class_token, self.pos_grid)

    def _run(self, block: Block, tokens: Tokens) -> Tokens:
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        return checkpoint(block, tokens) if recompute else block(tokens)

    def _finish(self, tokens: Tokens) -> Tensor:
        """Turn the tokens after the last layer into normalised features, class tokens first."""
        features = self.norm_f(tokens.residual + self.drop_path(tokens.hidden))
        return class_tokens_first(features, tokens.cls_index)

    def _pool(self, x: Tensor) -> Tensor:
        K = self.num_prefix_tokens
        if self.global_pool == "token":
            return x[:, :K].mean(dim=1)
        if self.global_pool == "avg":
            return x[:, K:].mean(dim=1)
        if self.global_pool == "last":
            return x[:, -1]
        return x[:, K:] if self.global_pool == "max" else x


def class_token_positions(class_token: str, num_patches: int) -> tuple[int, ...]:
    """Return the positions of the class tokens in a sequence of num_patches patches and these class tokens."""
    return {"middle": (num_patches // 2,), "front": (0,), "double": (0, num_patches + 1), "none": ()}[class_token]


def insert_tokens(x: Tensor, tokens: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
    """Insert tokens, each [B, 1, D], into x [B, L, D], so that they stand at these ascending positions."""
    for token, position in zip(tokens, positions, strict=True):
        x = torch.cat((x[:, :position], token, x[:, position:]), dim=1)
    return x


def _take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens of x [B, L, D] at index [B, K]: [B, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@register_notrace_function
def positions_of_all(x: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return positions as those of every image of x [B, L, D]: [B, K]."""
    # Made on the images' device: copying a list to a GPU would wait for the GPU.
    index = torch.empty(len(x), len(positions), dtype=torch.long, device=x.device)
    for k, position in enumerate(positions):
        index[:, k] = position
    return index


@register_notrace_function
def class_tokens_first(x: Tensor, cls_index: Tensor) -> Tensor:
    """Move the class tokens, wherever they are in each image, to the front; the patches keep their order."""
    B, L = x.shape[:2]
    # Sort by position, with class tokens moved below all patches: no two keys are equal, so any sort keeps the order.
    keys = torch.arange(L, device=x.device).expand(B, -1).scatter_add(1, cls_index, torch.full_like(cls_index, -L))
    return _take_tokens(x, keys.argsort(dim=1))


def _shuffle(tokens: Tokens) -> Tokens:
    """Put the tokens of all images into one random order."""
    order = torch.randperm(tokens.hidden.shape[1], device=tokens.hidden.device)
    place = order.argsort()  # where each token went
    return tokens._replace(
        hidden=tokens.hidden[:, order], cls_index=place[tokens.cls_index], source=place[tokens.source]
    )


def resize_pos_embed(
    pos_embed: Tensor, grid_size: tuple[int, int], class_token: str, old_grid: tuple[int, int] | None = None
) -> Tensor:
    """Resample a position embedding for another grid of patches; the class tokens' rows don't change.

    Args:
        pos_embed: [1, L, D], rows in sequence order.
        grid_size: Patches of the new grid, (rows, columns).
        class_token: Where the class tokens are, as in VisionMamba.
        old_grid: Patches of the old grid; a square if None.

    Raises:
        ValueError: The number of rows doesn't fit old_grid, or a square if that is None.
    """
    num_classes = len(class_token_positions(class_token, 0))
    old_patches = pos_embed.shape[1] - num_classes
    if old_grid is None:
        side = math.isqrt(max(old_patches, 0))
        old_grid = (side, side)
    if math.prod(old_grid) != old_patches or not old_patches:
        raise ValueError(f"a position embedding of {old_patches} patches is no grid of {old_grid[0]} x {old_grid[1]}")
    # Cut into slices, not by a list of positions: copying a list to a GPU would wait for the GPU.
    places = class_token_positions(class_token, old_patches)
    bounds = pairwise((-1, *places, pos_embed.shape[1]))
    patches = torch.cat([pos_embed[:, before + 1 : place] for before, place in bounds], dim=1)
    resized = resample_abs_pos_embed(patches, grid_size, old_grid, num_prefix_tokens=0)
    classes = [pos_embed[:, place : place + 1] for place in places]
    return insert_tokens(resized, classes, class_token_positions(class_token, math.prod(grid_size)))


# Published name -> ours. The published mixer holds both directions side by side, the backward one marked by _b.
_PUBLISHED_NAMES = {
    f"{module}{mark}{parameter}": f"{branch}.{module}{parameter}"
    for mark, branch in (("", "forward_ssm"), ("_b", "backward_ssm"))
    for module, parameter in (
        ("conv1d", ".weight"),
        ("conv1d", ".bias"),
        ("x_proj", ".weight"),
        ("dt_proj", ".weight"),
        ("dt_proj", ".bias"),
        ("D", ""),
    )
} | {"A_log": "forward_ssm.A_log", "A_b_log": "backward_ssm.A_log"}


def checkpoint_filter_fn(state_dict: dict, model: VisionMamba, entry: str = "model") -> dict[str, Tensor]:
    """Rename the keys of a published Vim checkpoint to ours, and resample its position embedding to the model's grid.

    Args:
        state_dict: Published keys or ours, bare or in a `model` entry. Unknown keys pass unchanged, so that
            load_state_dict reports them. Beside `model`, `grid_size` (rows, columns) is the position embedding's
            grid of patches; without it, an embedding whose length isn't the model's is taken for a square.
        model: The model that will load the result.
        entry: Which weights of a checkpoint to take: `model`, or `model_ema`, their average.

    Raises:
        ValueError: The checkpoint lacks the entry, grid_size is not two positive ints, or the position embedding's
            length doesn't fit its grid.
    """
    is_bare = "model" not in state_dict and entry not in state_dict
    weights = state_dict if is_bare else state_dict.get(entry)
    if weights is None:
        raise ValueError(f"the checkpoint holds no {entry}")
    old_grid = None if is_bare else _saved_grid(state_dict)
    renamed = {}
    for key, value in weights.items():
        prefix, mixer, name = key.partition(".mixer.")
        renamed[f"{prefix}{mixer}{_PUBLISHED_NAMES.get(name, name)}"] = value
    pos_embed = renamed.get("pos_embed")
    new_grid = model.pos_grid
    if pos_embed is None or pos_embed.ndim != 3:
        return renamed
    if old_grid != new_grid if old_grid else pos_embed.shape[1] != model.pos_embed.shape[1]:
        renamed["pos_embed"] = resize_pos_embed(pos_embed, new_grid, model.class_token, old_grid)
    return renamed


def _saved_grid(state_dict: dict) -> tuple[int, int] | None:
    """Return the checkpoint's `grid_size`, None if it has none; raise ValueError unless it is two positive ints."""
    grid = state_dict.get("grid_size")
    if grid is None:
        return None
    if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"its grid_size {grid!r} is no number of rows and columns")
    return tuple(grid)


class Weights(NamedTuple):
    """Name published weights: a repository of the Hugging Face hub, a file there, and the file's entry to take."""

    hf_hub_id: str
    hf_hub_filename: str
    entry: str = "model"


# By Vim's authors. The figure published for the base model is that of the average of its weights.
WEIGHTS = {
    "vim_tiny_patch16_224": Weights("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
    "vim_tiny_patch16_stride8_224": Weights("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
    "vim_small_patch16_224": Weights("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
    "vim_small_patch16_stride8_224": Weights("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
    "vim_base_patch16_224": Weights("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", entry="model_ema"),
}


def published_weights(name: str) -> Weights | None:
    """Return the published weights of a model, by its short or its published name; None if there are none."""
    return WEIGHTS.get(name.partition("_bimambav2")[0])


# The registry: what differs between variants. The five published names come first, verbatim.
_TINY = {"embed_dim": 192, "depth": 24}
_SMALL = {"embed_dim": 384, "depth": 24}
_BASE = {"embed_dim": 768, "depth": 24}
_PUBLISHED = "bimambav2_final_pool_mean_abs_pos_embed_with"
_VARIANTS = {
    f"vim_tiny_patch16_224_{_PUBLISHED}_midclstok_div2": _TINY,
    f"vim_tiny_patch16_stride8_224_{_PUBLISHED}_midclstok_div2": _TINY | {"stride": 8},
    f"vim_small_patch16_224_{_PUBLISHED}_midclstok_div2": _SMALL,
    f"vim_small_patch16_stride8_224_{_PUBLISHED}_midclstok_div2": _SMALL | {"stride": 8},
    f"vim_base_patch16_224_{_PUBLISHED}_middle_cls_token_div2": _BASE,
    "vim_tiny_patch16_224": _TINY,
    "vim_tiny_patch16_stride8_224": _TINY | {"stride": 8},
    "vim_small_patch16_224": _SMALL,
    "vim_small_patch16_stride8_224": _SMALL | {"stride": 8},
    "vim_base_patch16_224": _BASE,
    "vim_nano_patch4_32": {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 12},
    "vim_pico_patch2_8": {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 6},
}


def _hub_cfg(name: str) -> dict[str, str]:
    weights = published_weights(name)
    return {"hf_hub_id": weights.hf_hub_id, "hf_hub_filename": weights.hf_hub_filename} if weights else {}


default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, variant.get("img_size", 224), variant.get("img_size", 224)),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        | _hub_cfg(name)
        for name, variant in _VARIANTS.items()
    }
)


def _register(name: str, variant: dict) -> Callable[..., VisionMamba]:
    """Make the function that builds a model of this name, and make it known to timm."""
    weights = published_weights(name)
    filter_fn = partial(checkpoint_filter_fn, entry=weights.entry) if weights else checkpoint_filter_fn

    def create(pretrained: bool = False, **kwargs) -> VisionMamba:
        return build_model_with_cfg(
            VisionMamba,
            name,
            pretrained,
            pretrained_filter_fn=filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **(variant | kwargs),
        )

    create.__name__ = create.__qualname__ = name
    return register_model(create)


__all__ = ["VisionMamba"]  # timm adds the models
globals().update({name: _register(name, variant) for name, variant in _VARIANTS.items()})
