"""Declare the flags of programs that read a trained model: its file, and flags that override its run's settings."""

from dataclasses import dataclass
from typing import ClassVar

from training.settings.flag import flag
from training.settings.kinds import path
from training.settings.model import ModelChoice


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """Hold the file of a trained model."""

    resume: str = flag(..., "the checkpoint, or hf_hub:OWNER/REPOSITORY/FILE", path, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class SavedModelChoice(ModelChoice):
    """Hold the name and the images of a trained model, if its checkpoint doesn't give them."""

    TITLE: ClassVar[str | None] = "checkpoint"

    model: str | None = flag(
        None, "a model of models_mamba.py, for a checkpoint that doesn't say", metavar="NAME", follows="model"
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(SavedModelChoice, CheckpointFile):
    """Hold the file of a trained model, and its name and images if the checkpoint doesn't give them."""

    TITLE: ClassVar[str | None] = "checkpoint"
