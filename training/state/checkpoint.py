"""Read and write checkpoints: plain data in one file, which is either whole or absent."""

import argparse
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.settings.kinds import with_names_of_now
from training.state import history, hub
from training.state.entries import check_entries, is_plain_tensor, is_settings
from training.words import reason


def save(path: Path, state: dict) -> None:
    """Write a checkpoint so that a crash at any moment leaves the whole old file or the whole new one.

    Raises:
        OSError: The checkpoint can't be written whole, for example on a full disk; the old file is kept.
    """
    try:
        replace_file(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # PyTorch reports a full disk as a RuntimeError
        raise OSError(f"{path}: can't be written ({error.__context__ or error})") from error


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file beside the old one, and replace the old one once the new one is whole and on disk."""
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
    """Remove the temporary files of processes that were killed while writing."""
    for temporary in output_dir.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def find(output_dir: Path) -> list[Path]:
    """Return the checkpoints in a run's directory: the latest state, the best, and those of --checkpoint-hist."""
    return [*_latest_and_best(output_dir), *history.find(output_dir).values()]


def _latest_and_best(output_dir: Path) -> list[Path]:
    paths = (output_dir / name for name in ("checkpoint.pth", "best_checkpoint.pth"))
    return [path for path in paths if path.is_file()]


def newest(output_dir: Path) -> tuple[str, dict | None]:
    """Return the path and entries of the checkpoint to resume from; ("", None) if none was written yet.

    Choose the checkpoint that is furthest by epoch and step. File times don't count: copying a file changes them. Those
    of --checkpoint-hist are read only if no other can be.

    Raises:
        ValueError: Checkpoints exist, but none of them can be read.
    """
    best, problems, older = ("", None), [], set(history.find(output_dir).values())
    for path in find(output_dir):
        if path in older and best[1] is not None:
            break
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
    """Return the epoch that a checkpoint would train next, and how many of its steps are already done."""
    return saved.get("epoch", 0), saved.get("sums", {}).get("steps", 0)


def beyond(output_dir: Path, epoch: int, steps: int) -> list[Path]:
    """Return the latest and the best checkpoint of a directory, if they are further than so many steps of an epoch."""
    found = []
    for path in _latest_and_best(output_dir):
        with suppress(ValueError):  # one that can't be read is no place to go on from
            found += [path] if progress(load(str(path))) > (epoch, steps) else []
    return found


def sha256(path: str, flag: str = "--resume") -> str:
    """Return the SHA-256 of a checkpoint's file, here or on the hub, in hexadecimal."""
    return hashlib.sha256(_local(path, flag).read_bytes()).hexdigest()


def load(path: str, flag: str = "--resume") -> dict:
    """Read our own or a published checkpoint onto the CPU as plain data: code in the file is never run.

    Args:
        path: A PyTorch file, or a safetensors file if the name ends in .safetensors; here, or on the Hugging Face hub
            (hub.local_path).
        flag: The flag that named the file, for error messages.

    Returns:
        The entries. `model` holds the weights, even if the file is a bare state dict; `model_ema` their average, if
        there is one; `classes` the class names in the order of the head, if they are known.

    Raises:
        ValueError: The file is missing or broken, holds more than tensors and plain data, or holds no weights.
    """
    file = _local(path, flag)
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _load_plain(file)
    except Exception as error:  # a broken file can raise nearly any exception
        # Of what is no archive, PyTorch says nothing of use, or advises to run code in the file.
        broken = file.suffix == ".safetensors" or isinstance(error, RuntimeError)
        why = f" ({reason(error).partition('. ')[0]})" if broken else ""
        raise ValueError(f"{flag} {path}: not a checkpoint of tensors and plain data{why}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{flag} {path}: holds a {type(state).__name__} instead of a checkpoint")
    if "model" not in state and isinstance(state.get("state_dict"), dict):  # of timm's training script
        state = {"model": state["state_dict"], "model_ema": state.get("state_dict_ema")}
    elif "model" not in state:
        state = {"model": state}
    for entry in ("model", "model_ema"):
        if not (_is_weights(state.get(entry)) or (entry == "model_ema" and state.get(entry) is None)):
            raise ValueError(f"{flag} {path}: its {entry} is not a table of names and tensors that hold numbers")
    if not is_settings(state.get("settings", {})):
        raise ValueError(f"{flag} {path}: its settings are no table of names and values")
    if not _is_names(state.get("classes")):
        raise ValueError(f"{flag} {path}: its classes are no list of names")
    if "settings" in state:
        state["settings"] = with_names_of_now(state["settings"])
    return state


def _local(path: str, flag: str) -> Path:
    """Return where a checkpoint is on this machine; raise ValueError if it is nowhere."""
    try:
        file = Path(hub.local_path(path) if hub.is_on_hub(path) else path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None
    if file.is_dir():
        raise ValueError(f"{flag} {path}: is a directory; name a file in it, such as {file / 'checkpoint.pth'}")
    if not file.is_file():
        raise ValueError(f"{flag} {path}: no such file")
    return file


def _load_plain(path: Path) -> object:
    # The published Vim files store their command line as a Namespace, which is plain data too.
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
    """Check that a state dict has exactly the model's keys and shapes, and floats where the model has floats.

    Args:
        model: The model that will load the weights.
        weights: The state dict to check.
        what: The flag and file of the weights, for error messages.

    Raises:
        ValueError: Keys are missing, unexpected, or differ in shape or kind of number. One line gives the count of
            each and the first key.
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
