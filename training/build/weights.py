"""The weights that a model starts from: new, another run's, or a checkpoint's."""

from torch import Tensor

from models_mamba import VisionMamba, checkpoint_filter_fn
from training.build.model import build_model
from training.settings.checkpoint import CheckpointSettings
from training.settings.settings import Settings
from training.state import checkpoint
from training.words import counted

PATCHES = "patch_embed.proj.weight"  # [D, channels, height, width]


def fit_weights(saved: dict, model: VisionMamba, settings: Settings) -> dict:
    """The checkpoint with its weights, and their average where it is wanted, as the model takes them.

    Raises:
        ValueError: They don't fit.
    """
    fitted = dict(saved)
    for entry in ("model", "model_ema") if settings.model_ema else ("model",):
        if saved.get(entry) is not None:
            fitted[entry] = checkpoint_filter_fn(saved | {"model": saved[entry]}, model)
            checkpoint.check_fit(model, fitted[entry], f"--resume {settings.resume}: its {entry}")
    return fitted


def start_from(model: VisionMamba, path: str, classes: list[str] | None = None) -> str:
    """Load the weights that --finetune names, ours or published; a head that doesn't fit stays as new.

    A model of grey images takes weights for coloured ones, summed over the channels.

    Args:
        model: Takes the weights.
        path: The file.
        classes: Names of the classes to learn. Where the file names its own, each class gets its own row of the head;
            where one of them isn't among the file's, the head is another.

    Returns:
        A line about what was loaded.

    Raises:
        ValueError: The file is no checkpoint, or it doesn't fit for other reasons than its head.
    """
    saved = checkpoint.load(path, "--finetune")
    weights = checkpoint_filter_fn(saved, model)
    if model.in_chans == 1 and PATCHES in weights and weights[PATCHES].ndim == 4:
        weights[PATCHES] = weights[PATCHES].sum(dim=1, keepdim=True)  # as timm does
    others = {key: value for key, value in weights.items() if not key.startswith("head.")}
    head = {key: value for key, value in weights.items() if key.startswith("head.")}
    if classes and saved.get("classes"):
        head = _head_for(classes, head, saved["classes"])
    new_head = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    fits = all(key in head and head[key].shape == value.shape for key, value in new_head.items())
    weights = others | (head if fits else new_head)
    checkpoint.check_fit(model, weights, f"--finetune {path}")
    model.load_state_dict(weights)
    return path if fits else f"{path}, with a new head for {counted(model.num_classes, 'class', 'classes')}"


def _head_for(classes: list[str], head: dict[str, Tensor], known: list[str]) -> dict[str, Tensor]:
    """The rows of a head for classes `known` that belong to `classes`; nothing where it lacks one."""
    if classes == known:
        return head
    rows = [known.index(name) for name in classes if name in known]
    complete = len(rows) == len(classes) and all(len(value) == len(known) for value in head.values())
    return {key: value[rows] for key, value in head.items()} if complete else {}


def restore(settings: CheckpointSettings, saved: dict) -> VisionMamba:
    """The model of a checkpoint with its weights, for evaluation and without fusion.

    Args:
        args: As for build_model; without a model's name the checkpoint's own.
        saved: What checkpoint.load returned.

    Raises:
        ValueError: There is no name, or the checkpoint doesn't fit.
    """
    if not settings.model:
        raise ValueError(f"--resume {settings.resume}: doesn't say which model it is; name it with --model")
    head = saved["model"].get("head.weight")
    model = build_model(settings, num_classes=0 if head is None else len(head))
    weights = checkpoint_filter_fn(saved, model)
    checkpoint.check_fit(model, weights, f"--resume {settings.resume}")
    model.load_state_dict(weights)
    return model.eval()
