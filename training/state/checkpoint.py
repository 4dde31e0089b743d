"""Checkpoints: plain data in one file, whole or not there at all."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.state.entries import check_entries, is_plain_tensor, is_settings


def save(path: Path, state: dict) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one, never half of one.

    Raises:
        OSError: It can't be written whole, as on a full disk; the old file is still there.
    """
    try:
        replace_file(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # PyTorch says a full disk in its own words
        raise OSError(f"{path}: can't be written ({error.__context__ or error})") from error


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside the old one and put it into its place when it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for temporary in output_dir.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def find(output_dir: Path) -> list[Path]:
    """The checkpoints of a run that are there, the last state first."""
    names = ("checkpoint.pth", "best_checkpoint.pth")
    return [output_dir / name for name in names if (output_dir / name).is_file()]


def newest(output_dir: Path) -> tuple[str, dict | None]:
    """The checkpoint to go on from after an interruption, and its entries; neither where none was written yet.

    It is the one that is furthest by epoch and step: copied and touched files are as old as they look.

    Raises:
        ValueError: There are checkpoints, and none can be read.
    """
    best, problems = ("", None), []
    for path in find(output_dir):
        try:
            saved = load(str(path), "--auto-resume")
            check_entries(saved)
        except ValueError as error:
            told = str(error)
            problems.append(told if str(path) in told else f"--auto-resume {path}: {told}")
            continue
        if best[1] is None or progress(saved) > progress(best[1]):
            best = str(path), saved
    if problems and best[1] is None:
        raise ValueError(problems[0])
    return best


def progress(saved: dict) -> tuple[int, int]:
    """The epoch to train next that a checkpoint names, and the steps of it that are done."""
    return saved.get("epoch", 0), saved.get("sums", {}).get("steps", 0)


def load(path: str, flag: str = "--resume") -> dict:
    """Read a checkpoint of ours or a published one onto the CPU, as plain data: no code in it is run.

    Args:
        path: The file, PyTorch's or, by its name, a .safetensors one.
        flag: What the user named it by, for errors to say.

    Returns:
        Its entries. `model` holds the weights, also where the file holds them bare; `model_ema` their average, if any;
        `classes` the names of the classes in the order of the head, if they are known.

    Raises:
        ValueError: The file is missing, broken, or holds anything but tensors and plain data, or no weights.
    """
    if not Path(path).is_file():
        raise ValueError(f"{flag} {path}: no such file")
    try:
        state = load_file(path) if path.endswith(".safetensors") else _load_plain(path)
    except Exception as error:  # a broken file raises nearly everything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{flag} {path}: not a checkpoint of tensors and plain data ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{flag} {path}: holds a {type(state).__name__} instead of a checkpoint")
    if "model" not in state:
        state = {"model": state}
    for entry in ("model", "model_ema"):
        if not (_is_weights(state.get(entry)) or (entry == "model_ema" and state.get(entry) is None)):
            raise ValueError(f"{flag} {path}: its {entry} is no table of names and tensors that hold numbers")
    if not is_settings(state.get("settings", {})):
        raise ValueError(f"{flag} {path}: its settings are no table of names and values")
    if not _is_names(state.get("classes")):
        raise ValueError(f"{flag} {path}: its classes are no list of names")
    return state


def _load_plain(path: str) -> object:
    # The published Vim files hold their command line as a Namespace, which is plain data too.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_weights(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and len(entry) > 0
        and all(isinstance(key, str) and is_plain_tensor(value) for key, value in entry.items())
    )


def _is_names(entry: object) -> bool:
    return entry is None or (isinstance(entry, list) and all(isinstance(name, str) for name in entry))


def check_fit(model: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Check that a state dict has exactly the model's keys and shapes, and numbers of their kind.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape or kind; one line says how many and which first, of
            what.
    """
    own = model.state_dict()
    complaints = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in weights and weights[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} {weights[key].dtype} for {own[key].dtype}"
            for key in own
            if key in weights and weights[key].is_floating_point() != own[key].is_floating_point()
        ],
    }
    told = [f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in complaints.items() if keys]
    if told:
        raise ValueError(f"{what}: does not fit this model: {', '.join(told)}")
