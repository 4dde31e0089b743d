"""A cache of the Hugging Face hub as a download leaves it, and files of the kind that Vim's authors published."""

import argparse
import json
from pathlib import Path

import torch

KEYS = json.loads((Path(__file__).parent / "golden" / "vim_state_dict_keys.json").read_text())
REVISION = "0123456789abcdef0123456789abcdef01234567"
RANDOM = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm_f.weight", "head.weight")  # the rest are constant


def put(cache: Path, repository: str, name: str, content: object) -> Path:
    """Lay a file, saved by PyTorch, into a cache of the hub."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / REVISION / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    torch.save(content, path)
    return path


def published_file(name: str) -> dict:
    """A published training's last checkpoint: a model's real names and shapes, and few values, so that it is small."""
    generator = torch.Generator().manual_seed(0)
    published = next(key for key in KEYS if key.startswith(f"{name}_bimamba"))
    shapes = dict(zip(KEYS[published]["keys"], KEYS[published]["shapes"], strict=True))
    model = {
        key: 0.02 * torch.randn(shape, generator=generator) if key in RANDOM else torch.tensor(0.01).expand(shape)
        for key, shape in shapes.items()
    }
    return {
        "model": model,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "lr_scheduler": {"base_values": [1e-3], "metric": None},
        "epoch": 299,
        "model_ema": {key: value + 1 for key, value in model.items() if key in RANDOM}
        | {key: value for key, value in model.items() if key not in RANDOM},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(model=published, lr=1e-3, opt_betas=None, distributed=True),
    }
