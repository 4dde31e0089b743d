"""Load the weights that a model starts from: those of --finetune or of a checkpoint."""

from torch import Tensor

from models_mamba import VisionMamba, checkpoint_filter_fn
from training.build.model import build_model
from training.settings.checkpoint import CheckpointSettings
from training.settings.settings import Settings
from training.state import checkpoint
from training.words import counted

PATCHES = "patch_embed.proj.weight"  # [D, channels, height, width]


def fit_weights(saved: dict, model: VisionMamba, settings: Settings) -> dict:
    """Return the checkpoint with its weights, and their average if it is wanted, fitted to the model.

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
    """Load the weights that --finetune names, ours or published; if the head doesn't fit, the model keeps its new one.

    Weights for color images also fit a model of grey images: the filters are summed over the channels.

    Args:
        model: The model that receives the weights.
        path: The file of the weights.
        classes: Names of the classes to learn. If the file names its classes too, each class takes its row of the
            file's head; if the file lacks one of them, the whole head stays new.

    Returns:
        A line that says where the weights come from, and whether the head is new.

    Raises:
        ValueError: The file is not a checkpoint, or something other than its head doesn't fit.
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
    """Return a head for `classes` with the rows of a head for the classes `known`; empty if it lacks one of them."""
    if classes == known:
        return head
    rows = [known.index(name) for name in classes if name in known]
    complete = len(rows) == len(classes) and all(len(value) == len(known) for value in head.values())
    return {key: value[rows] for key, value in head.items()} if complete else {}


def restore(settings: CheckpointSettings, saved: dict) -> VisionMamba:
    """Build a checkpoint's model with its weights, ready for evaluation, without fusion.

    Args:
        settings: As for build_model, and the name of the file for error messages.
        saved: The entries that checkpoint.load returned.

    Raises:
        ValueError: The settings name no model, or the checkpoint doesn't fit.
    """
    if not settings.model:
        raise ValueError(f"--resume {settings.resume}: doesn't say which model it is; name it with --model")
    head = saved["model"].get("head.weight")
    model = build_model(settings, num_classes=0 if head is None else len(head))
    weights = checkpoint_filter_fn(saved, model)
    checkpoint.check_fit(model, weights, f"--resume {settings.resume}")
    model.load_state_dict(weights)
    return model.eval()
