"""Load the weights that a model starts from: those of --finetune, --pretrained or a checkpoint."""

from typing import NamedTuple

from timm.models import adapt_input_conv
from torch import Tensor

from models_mamba import WEIGHTS, VisionMamba, checkpoint_filter_fn, published_weights
from training.build.model import build_model
from training.settings.model import ModelChoice
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
            fitted[entry] = checkpoint_filter_fn(saved, model, entry)
            what = f"--resume {settings.resume}: {_other_model(saved, settings)}its {entry}"
            checkpoint.check_fit(model, fitted[entry], what)
    return fitted


def _other_model(saved: dict, settings: Settings) -> str:
    """Return 'is of --model ...; ' if the checkpoint is of another model than the flags say, else an empty text."""
    before = saved.get("settings", {})
    name, given = before.get("model"), before.get("model_kwargs") or []
    if not name or (name, given) == (settings.model, settings.model_kwargs or []) or not isinstance(given, list):
        return ""
    return f"is of --model {name}{''.join(f' {word}' for word in (given and ['--model-kwargs', *given]))}; "


class Start(NamedTuple):
    """Name weights to start from: their file, as checkpoint.load takes it, its entry, and the flag that asked for them.

    The entry is `model`, or `model_ema` for the average of the weights.
    """

    path: str
    entry: str = "model"
    flag: str = "--finetune"

    def __str__(self) -> str:
        return f"{self.path}, its {self.entry}" if self.entry != "model" else self.path


def start_of(settings: Settings) -> Start | None:
    """Return the weights that --finetune or --pretrained name, None if neither is given.

    Raises:
        ValueError: --pretrained is given, and no weights of the model have been published.
    """
    ema = {"entry": "model_ema"} if settings.finetune_ema else {}
    if settings.pretrained:
        published = published_weights(settings.model)
        if published is None:
            raise ValueError(
                f"--pretrained: there are weights of {', '.join(WEIGHTS)}, not of --model {settings.model}"
            )
        path = f"hf_hub:{published.hf_hub_id}/{published.hf_hub_filename}"
        return Start(path, **({"entry": published.entry} | ema), flag="--pretrained")
    return Start(settings.finetune, **ema) if settings.finetune else None


def start_from(model: VisionMamba, start: Start, classes: list[str] | None = None) -> str:
    """Load weights to start from, ours or published; if the head doesn't fit, the model keeps its new one.

    Weights for color images also fit a model of grey images: the filters are summed over the channels.

    Args:
        model: The model that receives the weights.
        start: The weights.
        classes: Names of the classes to learn. If the file names its classes too, each class takes its row of the
            file's head; if the file lacks one of them, the whole head stays new.

    Returns:
        A line that says where the weights come from, and whether the head is new.

    Raises:
        ValueError: The file is not a checkpoint or lacks the entry, or something other than its head doesn't fit.
    """
    saved = checkpoint.load(start.path, start.flag)
    if saved.get(start.entry) is None:
        raise ValueError(f"{start.flag} {start.path}: holds no {start.entry}, which --finetune-ema asks for")
    weights = checkpoint_filter_fn(saved, model, start.entry)
    if PATCHES in weights and weights[PATCHES].ndim == 4 and weights[PATCHES].shape[1] == 3:
        weights[PATCHES] = adapt_input_conv(model.in_chans, weights[PATCHES])
    others = {key: value for key, value in weights.items() if not key.startswith("head.")}
    head = {key: value for key, value in weights.items() if key.startswith("head.")}
    if classes and saved.get("classes"):
        head = _head_for(classes, head, saved["classes"])
    new_head = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    fits = all(key in head and head[key].shape == value.shape for key, value in new_head.items())
    weights = others | (head if fits else new_head)
    checkpoint.check_fit(model, weights, f"{start.flag} {start}")
    model.load_state_dict(weights)
    return f"{start}" if fits else f"{start}, with a new head for {counted(model.num_classes, 'class', 'classes')}"


def _head_for(classes: list[str], head: dict[str, Tensor], known: list[str]) -> dict[str, Tensor]:
    """Return a head for `classes` with the rows of a head for the classes `known`; empty if it lacks one of them."""
    if classes == known:
        return head
    rows = [known.index(name) for name in classes if name in known]
    complete = len(rows) == len(classes) and all(len(value) == len(known) for value in head.values())
    return {key: value[rows] for key, value in head.items()} if complete else {}


def restore(settings: ModelChoice, saved: dict, source: str | None = None) -> VisionMamba:
    """Build a checkpoint's model with its weights, ready for evaluation, without fusion.

    Args:
        settings: As for build_model.
        saved: The entries that checkpoint.load returned.
        source: How the user knows the checkpoint, for errors; --resume and its file if None.

    Raises:
        ValueError: The settings name no model, or the checkpoint doesn't fit.
    """
    source = source or f"--resume {settings.resume}"
    if not settings.model:
        raise ValueError(f"{source}: doesn't say which model it is; name it with --model")
    head = saved["model"].get("head.weight")
    model = build_model(settings, num_classes=0 if head is None else len(head))
    weights = checkpoint_filter_fn(saved, model)
    checkpoint.check_fit(model, weights, source)
    model.load_state_dict(weights)
    return model.eval()
